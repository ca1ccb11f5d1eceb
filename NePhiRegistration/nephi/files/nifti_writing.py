"""NIfTI files written slice by slice, without a second copy of a large image.

ITK's own writer keeps the whole image, compresses with more effort than is worthwhile for CTs, and does not report a
full disk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..journal import step
from ..space.grid import Grid
from .nifti import KINDS
from .packing import packer
from .writing import whole

_CODES = {kind: code for code, kind in KINDS.items()}
_MM = 2
_SCANNER = 1


def write_slices(slices: Iterable[np.ndarray], kind: np.dtype | type, grid: Grid, path: str | Path) -> None:
    """Write an image on ``grid`` as .nii.gz, its slices (along the first axis of the array) as they come.

    Raises NephiError where the file cannot be written.
    """
    kind = np.dtype(kind)
    with whole(path) as scratch:
        step("write", scratch)
        packed = packer(whole_numbers=kind.kind in "iu")
        with open(scratch, "wb") as file:
            file.write(packed.compress(_header(kind, grid)))
            for values in slices:
                file.write(packed.compress(np.ascontiguousarray(values, kind.newbyteorder("<")).data))
            file.write(packed.flush())


def _header(kind: np.dtype, grid: Grid) -> bytes:
    """NIfTI-1 with qform and sform, in RAS mm."""
    d = grid.dimension
    to_ras = np.array([-1.0, -1.0, 1.0])
    axes, spacing, origin = np.eye(3), np.ones(3), np.zeros(3)
    axes[:d, :d], spacing[:d], origin[:d] = grid.axes, grid.spacing_mm, grid.origin_lps_mm
    axes, origin = to_ras[:, None] * axes, to_ras * origin
    handed = 1.0 if np.linalg.det(axes) > 0 else -1.0
    size = (d, *grid.size, *[1] * (7 - d))
    return b"".join([
        struct.pack("<i36x8h14xhhh", 348, *size, _CODES[kind.str[1:]], 8 * kind.itemsize, 0),
        struct.pack("<8f", handed, *spacing, *[0.0] * 4),
        struct.pack("<fff3xB", 352.0, 1.0, 0.0, _MM),
        bytes(252 - 124),
        struct.pack("<hh", _SCANNER, _SCANNER),
        struct.pack("<6f", *_quaternion(axes * [1, 1, handed]), *origin),
        struct.pack("<12f", *np.c_[axes * spacing, origin].ravel()),
        struct.pack("<16x4s4x", b"n+1\0"),
    ])  # fmt: skip


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """b, c and d of the unit quaternion of a rotation, a at least 0."""
    r = rotation
    # the eigenvector of this matrix with the largest eigenvalue is (b, c, d, a) (Bar-Itzhack 2000)
    k = np.array([
        [r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0], r[2, 1] - r[1, 2]],
        [r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1], r[0, 2] - r[2, 0]],
        [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1], r[1, 0] - r[0, 1]],
        [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]],
    ])  # fmt: skip
    vector = np.linalg.eigh(k)[1][:, -1]
    return vector[:3] * (1.0 if vector[3] >= 0 else -1.0)
