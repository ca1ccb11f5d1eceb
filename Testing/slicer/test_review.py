"""Accepting and rejecting a result: kept with the scene, written with what is saved, gone with a new result."""

from __future__ import annotations

import json
from datetime import datetime
from hashlib import sha256

import pytest
from helpers import Scene
from nephi.files.folder import ResultFolder
from NePhiRegistrationLib import scene as nodes
from NePhiRegistrationLib.outputs import Outputs
from NePhiRegistrationLib.review import reviews, sign
from NePhiRegistrationLib.summary import compared_results
from saving import save_scene

NAME, COMMENT = 'Dr. Søren "Bo" Müller;: <x>', "Rand 50 % daneben;\nsiehe Segment 3: & weiter"


@pytest.fixture
def reviewed(finished):
    yield finished
    finished.outputs.forward.RemoveAttribute("NePhi.Reviews")


def test_reviews_stay_with_the_scene_and_the_last_one_counts(reviewed, tmp_path):
    outputs = reviewed.outputs
    assert reviews(outputs) == [] and compared_results([outputs])[1][0][2] == "-"
    first = sign(outputs, True, NAME)
    second = sign(outputs, False, NAME, COMMENT)
    assert second.name == NAME and second.comment == " ".join(COMMENT.split())
    assert abs((datetime.now().astimezone() - datetime.fromisoformat(second.date)).total_seconds()) < 60
    assert compared_results([outputs])[1][0][2] == "Rejected"
    save_scene(reviewed.scene, tmp_path / "scene.mrml")
    scene = Scene().mrml
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Import()
    forward = next(n for n in nodes.of_class(scene, "vtkMRMLGridTransformNode") if Outputs.find(n))
    assert reviews(Outputs.find(forward)) == [first, second]


def test_a_review_needs_a_name_and_a_rejection_a_reason(reviewed):
    for arguments in ((True, "  "), (False, "A. Reader", " \n")):
        with pytest.raises(ValueError) as told:
            sign(reviewed.outputs, *arguments)
        assert len(str(told.value).splitlines()) == 1
    assert reviews(reviewed.outputs) == []


def test_a_saved_result_holds_its_reviews_and_a_new_one_does_not(reviewed, tmp_path):
    outputs, place = reviewed.outputs, tmp_path / "result"
    outputs.save(tmp_path / "before")
    assert not ResultFolder(tmp_path / "before").review.exists()
    sign(outputs, False, NAME, COMMENT)
    outputs.save(place)
    files = ResultFolder(place)
    written = json.loads(files.review.read_text(encoding="utf-8"))
    (entry,) = written["reviews"]
    assert (entry["verdict"], entry["name"]) == ("rejected", NAME)
    assert written["report_sha256"] == sha256(files.report.read_bytes()).hexdigest()
    with files.replaced() as scratch:  # as another registration does that is written there
        scratch.report.write_text("{}", encoding="utf-8")
    assert not files.review.exists()
