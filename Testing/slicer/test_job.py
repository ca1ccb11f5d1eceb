"""What keeps a registration from starting is said in words."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import (
    markups_node,
    phantom_job,
    put_under,
)
from NePhiRegistrationLib.job import LogicError
from NePhiRegistrationLib.logic import Logic
from slicer.util import vtkMatrixFromArray


def _segmentation(job):
    job.fixed_mask = job.fixed.GetScene().AddNewNodeByClass("vtkMRMLSegmentationNode")


def _landmarks(job, fixed: int, moving: int):
    scene = job.fixed.GetScene()
    job.fixed_landmarks = markups_node(scene, np.zeros((fixed, 3)), "a")
    job.moving_landmarks = markups_node(scene, np.zeros((moving, 3)), "b")


def _unplaced(job):
    _landmarks(job, 2, 2)
    job.moving_landmarks.UnsetNthControlPointPosition(1)


def _one_landmark_list(job):
    _landmarks(job, 2, 2)
    job.moving_landmarks = None


def _double_initial(job):
    job.initial_transform = put_under(job.moving, np.eye(4))


def _nonlinear_initial(job):
    job.initial_transform = job.fixed.GetScene().AddNewNodeByClass("vtkMRMLGridTransformNode")


def _model_and_bent_initial(job):
    _nonlinear_initial(job)
    job.model = "lung"


def _nonlinear_parent(job):
    _nonlinear_initial(job)
    job.moving.SetAndObserveTransformNodeID(job.initial_transform.GetID())
    job.initial_transform = None


def _sheared(job):
    put_under(job.fixed, np.eye(4)).SetMatrixTransformToParent(vtkMatrixFromArray(np.eye(4) + np.diag([0.3, 0, 0], 1)))


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda job: setattr(job, "fixed", None), "Choose the fixed volume"),
        (lambda job: setattr(job, "moving", None), "Choose the moving volume"),
        (lambda job: setattr(job, "moving", job.fixed), "the same"),
        (lambda job: setattr(job, "preset", "thorough"), "preset"),
        (lambda job: setattr(job, "settings_file", "/nowhere.json"), "/nowhere.json"),
        (lambda job: setattr(job, "overrides", {"fit": {"iterations": -1}}), "iterations"),
        (lambda job: setattr(job, "overrides", {"fit": {"turns": 1}}), "turns"),
        (lambda job: setattr(job, "align", "magic"), "magic"),
        (_segmentation, "no segments"),
        (lambda job: _landmarks(job, 2, 3), "2 fixed and 3 moving"),
        (lambda job: _landmarks(job, 0, 0), "empty"),
        (_unplaced, "no position"),
        (_one_landmark_list, "moving volume too"),
        (_double_initial, "twice"),
        (_model_and_bent_initial, "choose only one"),
        (_nonlinear_parent, "nonlinear"),
        (_sheared, "sheared"),
    ],
)
def test_what_is_missing_is_said_in_words(scene, phantom, spoil, words):
    job, logic = phantom_job(scene, phantom), Logic(scene)
    assert logic.problem(job) == ""
    spoil(job)
    reason = logic.problem(job)
    assert words in reason and "\n" not in reason
    with pytest.raises(LogicError):
        logic.start(job)
