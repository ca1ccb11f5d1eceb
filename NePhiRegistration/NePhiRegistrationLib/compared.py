"""Where the images were compared: the mask that the engine used, given or detected.

It is known from the volume of the fields' disagreement, which is 0 outside the mask, on a grid of a few millimetres.
"""

from __future__ import annotations

import numpy as np
from slicer.util import arrayFromVolume

from . import scene as nodes


def in_mask(outputs) -> np.ndarray | None:
    """The mask (z, y, x) on the volume's grid; None if there was none or it is unknown."""
    volume, report = outputs.fields_disagreement, outputs.report
    if volume is None or "volume" not in report:
        return None
    inside = arrayFromVolume(volume) > 0
    volume_ml = np.count_nonzero(inside) * np.prod(volume.GetSpacing()) / 1000
    # fields that undo each other exactly leave 0 inside the mask too
    return inside if volume_ml > report["volume"]["fixed_ml"] / 2 else None


def at_points(outputs, points_ras_mm: np.ndarray) -> np.ndarray:
    """Whether points (n, 3) lie in the mask (n,); all of them if it is unknown."""
    inside = in_mask(outputs)
    if inside is None:
        return np.ones(len(points_ras_mm), bool)
    to_index = np.linalg.inv(nodes.ijk_to_world(outputs.fields_disagreement))
    index_zyx = np.rint(points_ras_mm @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)[:, ::-1]
    there = ((index_zyx >= 0) & (index_zyx < inside.shape)).all(1)
    there[there] = inside[tuple(index_zyx[there].T)]
    return there


def on_grid_of(outputs, reference) -> np.ndarray | None:
    """The mask (z, y, x) at a volume's voxels, its border smoothed; None as for ``in_mask``."""
    inside = in_mask(outputs)
    if inside is None:
        return None
    return nodes.resampled_array(100 * inside.astype(np.uint8), outputs.fields_disagreement, reference) > 50
