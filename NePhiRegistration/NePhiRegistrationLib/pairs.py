"""Pairs of landmarks, and how far a registration brings each from its partner, as they are placed and moved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import vtk

from . import scene as nodes
from .i18n import tr as _

_RAS_LPS = np.array([-1.0, -1.0, 1.0])
_SAME_MM = 0.2  # errors of the map and of the written transform differ slightly


@dataclass(frozen=True)
class Pair:
    """``before_mm`` is the distance after the alignment alone; None for a point that is not placed yet."""

    label: str
    fixed_ras_mm: tuple[float, float, float]
    moving_ras_mm: tuple[float, float, float]
    before_mm: float | None
    after_mm: float | None


def pairs(outputs, fixed_points, moving_points) -> list[Pair]:
    """The rows that both lists have."""
    alignment = outputs.report["alignment"]
    matrix, offset = np.array(alignment["matrix"]), np.array(alignment["offset_mm"])
    through, found = outputs.forward.GetTransformFromParent(), []
    for i in range(min(fixed_points.GetNumberOfControlPoints(), moving_points.GetNumberOfControlPoints())):
        fixed, moving = (_point(points, i) for points in (fixed_points, moving_points))
        before = after = None
        if fixed is not None and moving is not None:
            aligned = (matrix @ (np.array(fixed) * _RAS_LPS) + offset) * _RAS_LPS
            before = float(np.linalg.norm(aligned - moving))
            after = float(np.linalg.norm(np.array(through.TransformPoint(fixed)) - moving))
        found.append(Pair(fixed_points.GetNthControlPointLabel(i), fixed, moving, before, after))
    return found


def are_judged(outputs, found: list[Pair]) -> bool:
    """Whether the report of the result is about these pairs: none was moved, added or removed since."""
    now = [(*pair.fixed_ras_mm * _RAS_LPS, pair.after_mm) for pair in found if pair.after_mm is not None]
    rows = outputs.report.get("landmarks", [])
    then = [(row["x_lps_mm"], row["y_lps_mm"], row["z_lps_mm"], row["after_mm"]) for row in rows]
    return len(now) == len(then) and np.allclose(now, then, rtol=0, atol=_SAME_MM)


def add_pair(outputs, fixed_points, moving_points, point_ras_mm) -> tuple:
    """One more pair: a place in the fixed image, and where the registration takes it, to be corrected by hand.

    Lists that are None are made; both are returned. Raises ValueError where the lists do not match so far.
    """
    scene = outputs.forward.GetScene()
    made = []
    for points, name in ((fixed_points, _("Fixed landmarks")), (moving_points, _("Moving landmarks"))):
        if points is None:
            points = nodes.add(scene, "vtkMRMLMarkupsFiducialNode", name, displayed=True)
        made.append(points)
    counts = [points.GetNumberOfControlPoints() for points in made]
    if counts[0] != counts[1]:
        text = _("There are {fixed} fixed and {moving} moving landmarks; they must match one by one.")
        raise ValueError(text.format(fixed=counts[0], moving=counts[1]))
    moved = outputs.forward.GetTransformFromParent().TransformPoint(point_ras_mm)
    for points, place in zip(made, (point_ras_mm, moved), strict=True):
        points.AddControlPointWorld(vtk.vtkVector3d(*place), str(counts[0] + 1))
    return tuple(made)


def _point(points, i: int):
    """World RAS mm of a control point; None where it has no position."""
    if points.GetNthControlPointPositionStatus(i) != points.PositionDefined:
        return None
    place = [0.0] * 3
    points.GetNthControlPointPositionWorld(i, place)
    return tuple(place)
