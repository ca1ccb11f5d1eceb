"""NIfTI-1, NIfTI-2 and Analyze files, of one or several values per voxel.

They are read here and not by ITK, which reads missing voxels and NaN as 0, the voxels of ``scan.nii`` for those of
``scan.nii.gz`` next to it, and straightens sheared axes, all silently (nifti_clib #129, ITK #2243).
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError, notice
from .geometry import check_geometry
from .packing import DAMAGED, unpacker
from .sizes import check_memory

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz")
KINDS = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_OTHER = {1: "bits", 32: "complex numbers", 128: "colours", 1536: "128-bit numbers", 1792: "complex numbers",
          2048: "complex numbers", 2304: "colours"}  # fmt: skip
_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}
_DISPLACEMENTS, _VECTORS = 1006, 1007  # intent codes; ITK's own, 1007, are in LPS
_SAME = 0.01  # part of a voxel by which two statements of the spacing may differ
_FARTHEST_BYTE = 2**30  # at which voxels may begin, after whatever programs keep in the header
_ROUNDING = 1e-5  # relative; values that differ by more were not meant to be equal
_APART = 0.25  # part of a voxel by which sform and qform may place a corner apart; rounding has been seen at 0.08
_PART, _PACKED = 2**24, 2**20  # bytes read at a time


@dataclass(frozen=True)
class Header:
    """The voxels by a header; ``matrix`` (3, 4) takes indices to RAS mm, None in an Analyze file."""

    size: tuple[int, ...]
    components: int  # stored one after the other
    displacements: bool  # the components are in RAS mm
    kind: str
    offset: int
    slope: float
    intercept: float
    spacing_mm: np.ndarray
    matrix: np.ndarray | None

    @property
    def bytes(self) -> int:
        return math.prod(self.size) * self.components * np.dtype(self.kind).itemsize


def read_nifti(path: Path, role: str, joined: bool = False) -> sitk.Image:
    """The image in a file, ``.hdr`` or ``.img``, in LPS mm; vectors marked as displacements too.

    ``joined``: a fourth axis is that of vector components, as in the files of FSL. Integers are kept; with a slope they
    become float32 (from 32 bits on, float64). Raises NephiError for a damaged or contradictory file, with the reason.
    """
    head_path, data_path = _files(path, role)
    try:
        with _opened(head_path) as file:
            raw = file.read(544)
        header = _header(raw, head_path == data_path, role, path, joined)
        array = _voxels(header, data_path, role)
    except DAMAGED:
        raise NephiError(
            f"{role}: {path} is cut off or damaged: its compressed data end too early or fail their checksum"
        ) from None
    except OSError as error:
        raise NephiError(f"{role}: cannot read {path}: {error.strerror or error}") from None
    return _placed(array, header, role)


def read_extensions(path: Path) -> bytes:
    """What programs keep between the header and the voxels of a file that ``read_nifti`` reads; b"" without any."""
    head_path, data_path = _files(path, "image")
    with _opened(head_path) as file:
        raw = file.read(544)
        header = _header(raw, head_path == data_path, "image", path, False)
        return (raw + file.read(max(0, header.offset - len(raw))))[: header.offset] if head_path == data_path else b""


def _files(path: Path, role: str) -> tuple[Path, Path]:
    """Where header and voxels are: one file, or .hdr and .img."""
    name = path.name
    zipped = name.lower().endswith(".gz")
    stem = name[:-3] if zipped else name
    if stem.lower().endswith(".nii"):
        return path, path
    endings = ("HDR", "IMG") if stem.isupper() else ("hdr", "img")
    found = []
    for ending in endings:
        options = [path.with_name(stem[:-3] + ending + gz) for gz in ((".gz", "") if zipped else ("", ".gz"))]
        there = [option for option in options if option.is_file()]
        if not there:
            raise NephiError(f"{role}: {options[0]} is missing next to {path}")
        found.append(there[0])
    return found[0], found[1]


def _opened(path: Path) -> BinaryIO | _Unzipped:
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return _Unzipped(path) if zipped else open(path, "rb")


class _Unzipped:
    """A gzip file, read in large parts; Python's own reader takes 8 kB at a time and copies them several times.

    ``read`` raises one of ``DAMAGED`` where the file is: EOFError where it ends too early.
    """

    def __init__(self, path: Path):
        self._file, self._packed, self._member = io.FileIO(path), b"", unpacker()

    def __enter__(self) -> _Unzipped:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def read(self, most: int) -> bytes:
        parts = []
        while most > 0:
            self._packed = self._packed or self._file.read(_PACKED)
            if self._member.eof:  # further members may follow, after zeros
                self._packed = self._packed.lstrip(b"\0")
                if self._packed:
                    self._member = unpacker()
                elif not (more := self._file.read(_PACKED)):
                    break
                else:
                    self._packed = more
                continue
            at_end = not self._packed
            parts.append(self._member.decompress(self._packed, most))
            self._packed = self._member.unused_data or self._member.unconsumed_tail
            most -= len(parts[-1])
            if at_end and not parts[-1] and not self._member.eof:
                raise EOFError
        return b"".join(parts)


def _header(raw: bytes, single: bool, role: str, path: Path, joined: bool) -> Header:
    def refuse(reason: str) -> NephiError:
        return NephiError(f"{role}: cannot read {path}: {reason}")

    orders = {int.from_bytes(raw[:4], "little"): "<", int.from_bytes(raw[:4], "big"): ">"}
    second = 540 in orders
    order = orders.get(540 if second else 348)
    if order is None or len(raw) < (540 if second else 348):
        raise refuse("this is not a NIfTI file, or its header is cut off")

    def get(at: int, kind: str, count: int = 1) -> np.ndarray:
        return np.frombuffer(raw, order + kind, count, at).astype(float if kind[0] == "f" else int)

    magic = raw[4:8] if second else raw[344:348]
    if magic[:1] == b"n" and magic[3:4] == b"\0" and (magic[1:2] == b"+") != single:
        raise refuse("the header and the file's name disagree on whether the voxels are in the same file")
    nifti = magic[:1] == b"n" and magic[1:2] in b"+i" and magic[2:3].isdigit()
    if single and not nifti:
        raise refuse("this is not a NIfTI file: the header lacks its mark")
    if second:
        dim, code, pixdim = get(16, "i8", 8), get(12, "i2")[0], get(104, "f8", 8)
        offset, (slope, intercept) = get(168, "i8")[0], get(176, "f8", 2)
        qform, sform = get(344, "i4", 2)
        quaternion, rows, units = get(352, "f8", 6), get(400, "f8", 12), int(get(500, "i4")[0]) & 7
        intent = get(504, "i4")[0]
    else:
        dim, code, pixdim = get(40, "i2", 8), get(70, "i2")[0], get(76, "f4", 8)
        offset, (slope, intercept) = get(108, "f4")[0], get(112, "f4", 2)
        qform, sform = get(252, "i2", 2)
        quaternion, rows, units = get(256, "f4", 6), get(280, "f4", 12), raw[123] & 7
        intent = get(68, "i2")[0]
    if not nifti:
        notice(f"{role}: {path} is an Analyze file, which does not say where the image lies or which side is left.")
    if not 1 <= dim[0] <= 7:
        raise refuse(f"the header names {dim[0]} dimensions")
    size = [int(n) for n in dim[1 : dim[0] + 1]]
    if min(size) < 1:
        raise refuse(f"the header names a size of {' x '.join(map(str, size))}")
    own = 3 if joined else 4
    components = math.prod(size[own:])
    size = size[:own]
    while len(size) > 2 and size[-1] == 1:
        size.pop()
    if len(size) == 2 < dim[0] and not joined:
        notice(f"{role}: {path.name} is a single slice; it is read as a 2D image, without its position along z.")
    if components == min(len(size), 3) and not joined and intent not in (_DISPLACEMENTS, _VECTORS):
        raise refuse(
            f"it holds {components} values per voxel, but its intent code is neither {_DISPLACEMENTS} (displacements, "
            f"in RAS) nor {_VECTORS} (vectors, in LPS)"
        )
    if code not in KINDS:
        raise refuse(f"the voxels are {_OTHER.get(int(code), f'of an unknown type ({code})')}; give a scalar image")
    if len(size) > 3:
        raise NephiError(f"{role}: the image is {len(size)}D; give one 2D or 3D volume")
    if len(size) < 2:
        raise refuse("the image is 1D; give one 2D or 3D volume")
    if not (352 if single else 0) <= offset <= _FARTHEST_BYTE:
        raise refuse(f"the header places the voxels at byte {offset:g}")
    if not math.isfinite(slope) or not math.isfinite(intercept):
        raise refuse(f"the header scales the values by {slope:g} and shifts them by {intercept:g}")
    if units not in _UNITS_MM:
        raise refuse(f"the header gives lengths in an unknown unit ({units})")
    if slope == 0 or not nifti:
        slope, intercept = 1.0, 0.0
    scale = _UNITS_MM[units] if nifti else 1.0
    matrix = _matrix(pixdim, quaternion, rows, int(qform), int(sform), size, refuse, role) if nifti else None
    spacing = np.abs(pixdim[1:4]) if matrix is None else np.linalg.norm(matrix[:, :3], axis=0)
    matrix = None if matrix is None else matrix * scale
    displacements = intent == _DISPLACEMENTS and components > 1
    return Header(
        tuple(size),
        components,
        displacements,
        order + KINDS[code],
        int(offset),
        slope,
        intercept,
        spacing * scale,
        matrix,
    )


def _matrix(pixdim, quaternion, rows, qform: int, sform: int, size, refuse, role: str) -> np.ndarray | None:
    """Index -> RAS (3, 4): sform, qform and pixdim, which have to agree; None where neither form is set.

    A small difference is a notice, and sform is taken.
    """
    d = min(3, len(size))
    used = [pixdim[1 : d + 1], *([quaternion, pixdim[:1]] if qform > 0 else []), *([rows] if sform > 0 else [])]
    if not all(np.isfinite(part).all() for part in used):
        raise refuse("the header's geometry holds NaN or infinite values; repair it")
    if (pixdim[1 : d + 1] <= 0).any() and (qform > 0 or sform > 0 or (pixdim[1 : d + 1] < 0).any()):
        raise refuse(f"the voxel spacing (pixdim) is {_listed(pixdim[1 : d + 1])} mm; repair the header")
    pixdim = np.where(np.arange(8) > d, np.where(np.isfinite(pixdim) & (pixdim > 0), pixdim, 1.0), pixdim)
    forms = {}
    if sform > 0:
        forms["sform"] = rows.reshape(3, 4)
        steps = np.linalg.norm(forms["sform"][:, :d], axis=0)
        off = np.abs(steps / pixdim[1 : d + 1] - 1).max()
        said = f"the voxel spacing is {_listed(pixdim[1 : d + 1])} mm by pixdim and {_listed(steps)} mm by sform"
        if off > _SAME:
            raise refuse(f"{said}; repair the header")
        if off > _ROUNDING:
            notice(f"{role}: {said}, which is used.")
    if qform > 0:
        forms["qform"] = _of_quaternion(pixdim, quaternion, refuse)
    if len(forms) == 2:
        aside = np.abs(forms["sform"][:, 3] - forms["qform"][:, 3])
        if (aside > _ROUNDING * (np.abs(forms["qform"][:, 3]) + pixdim[1:4])).any():
            notice(
                f"{role}: the origin by sform, which is used, is {np.linalg.norm(aside):.3g} mm away from that by "
                "qform."
            )
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in (*size, 1, 1)[:3]], indexing="ij")).reshape(3, -1)
        places = [form[:, :3] @ corners + form[:, 3:] for form in forms.values()]
        apart = np.linalg.norm(places[0] - places[1], axis=0).max()
        if apart > _APART * pixdim[1 : d + 1].min():
            sheared = _shear(forms["sform"])
            raise refuse(
                f"qform and sform place the image up to {apart:.3g} mm apart"
                + (f", as sform is sheared by {sheared:.2g} degrees" if sheared > 0.05 else "")
                + "; set both to the correct one, or the code of one to 0"
            )
    if not forms:
        notice(f"{role}: the NIfTI file does not say where the image lies or how it is oriented (no sform, no qform).")
    return forms.get("sform", forms.get("qform"))


def _shear(form: np.ndarray) -> float:
    """Degrees by which the axes are off right angles."""
    axes = form[:, :3] / np.maximum(np.linalg.norm(form[:, :3], axis=0), 1e-30)
    return float(np.degrees(np.arcsin(min(1.0, np.abs(axes.T @ axes - np.diag(np.diag(axes.T @ axes))).max()))))


def _of_quaternion(pixdim: np.ndarray, quaternion: np.ndarray, refuse) -> np.ndarray:
    b, c, d = quaternion[:3]
    square = b * b + c * c + d * d
    if square > 1 + 1e-4:
        raise refuse(f"the qform is not a rotation: its quaternion ({b:g}, {c:g}, {d:g}) is longer than 1")
    a = math.sqrt(max(0.0, 1 - square))
    b, c, d = np.array([b, c, d]) / max(1.0, math.sqrt(square))
    turn = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ])  # fmt: skip
    turn[:, 2] *= -1.0 if pixdim[0] < 0 else 1.0
    return np.c_[turn * pixdim[1:4], quaternion[3:6]]


def _voxels(header: Header, path: Path, role: str) -> np.ndarray:
    """The voxels (z, y, x), scaled; read part by part, so that a small file takes little memory."""
    check_memory(header.bytes, path, role)
    with _opened(path) as file:
        if len(file.read(header.offset)) < header.offset:
            raise EOFError
        parts, held = bytearray(), 0
        while held < header.bytes and (part := file.read(min(_PART, header.bytes - held))):
            parts += part
            held += len(part)
        beyond = file.read(_PART)  # reaches the end, where gzip compares its checksum
    if held < header.bytes:
        raise NephiError(
            f"{role}: {path} is cut off: it has {held} bytes of voxels, but {' x '.join(map(str, header.size))} "
            f"voxels need {header.bytes}"
        )
    if len(beyond) >= 4096 or beyond.strip(b"\0") or len(beyond) >= header.bytes // header.size[-1]:
        raise NephiError(
            f"{role}: {path} has more than the {' x '.join(map(str, header.size))} voxels that its header announces; "
            "one of the two is damaged"
        )
    array = np.frombuffer(parts, header.kind)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if header.components == 1:
        array = array.reshape(header.size[::-1])
    else:
        array = np.ascontiguousarray(np.moveaxis(array.reshape(header.components, *header.size[::-1]), 0, -1))
    if header.slope != 1 or header.intercept != 0:
        single = array.dtype.itemsize <= 2 or array.dtype == np.float32
        array = array.astype(np.float32 if single else np.float64)
        array *= header.slope
        array += header.intercept
    if header.displacements:
        array = array * np.where(np.arange(header.components) < 2, -1, 1).astype(array.dtype)
    return array


def _placed(array: np.ndarray, header: Header, role: str) -> sitk.Image:
    d = len(header.size)
    spacing, origin, axes = header.spacing_mm[:d], np.zeros(d), np.eye(d)
    if header.matrix is None:
        spacing = np.where(np.isfinite(spacing) & (spacing > 0), spacing, 1.0) if not spacing.any() else spacing
    else:
        lps = np.array([-1.0, -1.0, 1.0])[:, None] * header.matrix
        origin = lps[:d, 3]
        axes = lps[:d, :d] / np.maximum(spacing, 1e-30)
        # float32 in the header: products that are 0 or 1 up to its rounding
        u, _, v = np.linalg.svd(axes)
        axes = u @ v if np.abs(u @ v - axes).max() < 1e-6 else axes
        if d == 2 and np.abs(lps[2, :2]).max() > 0.01 * spacing.max():
            raise NephiError(f"{role}: the image is a single slice in an oblique or upright plane; give the volume")
    check_geometry(spacing, origin, axes.ravel(), role)
    image = sitk.GetImageFromArray(array, isVector=header.components > 1)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    image.SetDirection(axes.ravel().tolist())
    return image


def _listed(values: np.ndarray) -> str:
    return " x ".join(f"{v:.7g}" for v in values)
