"""Transform files in text (.tfm, .txt) and MATLAB format (.mat), checked before ITK reads them.

ITK reads a truncated file as another transform, with uninitialised memory for missing numbers.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

from ..errors import NephiError
from .subprocess_reader import several_transforms

_FIRST = "#Insight Transform File V1"
_LONGEST = 2**28  # bytes of a text; beyond it use .h5
# parameters and fixed parameters by dimension; those that are not listed are left to ITK
_FARTHEST = 1e12  # of all parameters; ITK does not end on a matrix of 1e308
_COUNTS = {
    "AffineTransform": lambda d: (d * d + d, {d}),
    "MatrixOffsetTransformBase": lambda d: (d * d + d, {d}),
    "IdentityTransform": lambda d: (0, {0}),
    "TranslationTransform": lambda d: (d, {0}),
    "ScaleTransform": lambda d: (d, {d}),
    "ScaleLogarithmicTransform": lambda d: (d, {d}),
    "Euler2DTransform": lambda d: (3, {2}),
    "Rigid2DTransform": lambda d: (3, {2}),
    "Similarity2DTransform": lambda d: (4, {2}),
    "Euler3DTransform": lambda d: (6, {3, 4}),
    "VersorTransform": lambda d: (3, {3}),
    "VersorRigid3DTransform": lambda d: (6, {3}),
    "QuaternionRigidTransform": lambda d: (7, {3}),
    "Similarity3DTransform": lambda d: (7, {3}),
    "ScaleVersor3DTransform": lambda d: (9, {3}),
    "ScaleSkewVersor3DTransform": lambda d: (15, {3}),
    "ComposeScaleSkewVersor3DTransform": lambda d: (12, {3}),
}
_ON_GRIDS = ("BSplineTransform", "DisplacementFieldTransform")


def check_text(path: Path) -> bool:
    """Raise NephiError where the text is cut off or lacks numbers; True where all its transforms are known ones."""
    if path.stat().st_size > _LONGEST:
        raise NephiError(f"{path} is too large for a transform in text; save it as .h5")
    text = _text(path)
    if not text.startswith(_FIRST):
        raise NephiError(f"cannot read {path} as a transform: it does not begin with '{_FIRST}.0'")
    if not text.endswith("\n"):
        raise NephiError(f"{path} is cut off: its last line is incomplete")
    if text.count(_FIRST) > 1:  # ITK would compose them all
        raise NephiError(f"{path} is damaged: it contains several transform files, one after the other")
    blocks: list[dict[str, str]] = []
    for line in text.replace("\r\n", "\n").split("\n")[1:]:
        key, sign, value = (part.strip() for part in line.partition(":"))
        if not line.strip(" \t") or line.startswith("#"):
            continue
        plain = line.isascii() and line.replace("\t", " ").isprintable()  # ITK crashes on other kinds of spaces
        if not plain or not sign or key not in ("Transform", "Parameters", "FixedParameters"):
            raise NephiError(f"{path} is damaged: '{line[:40]}' is not a line of a transform file")
        if key == "Transform":
            blocks.append({})
        if not blocks or key in blocks[-1]:
            raise NephiError(f"{path} is damaged: '{key}' is in the wrong place")
        blocks[-1][key] = value
    if not blocks:
        raise NephiError(f"{path} is cut off: it contains no transform")
    announced = text.count("#Transform ")
    if announced not in (0, len(blocks)):
        raise NephiError(f"{path} is cut off: it announces {announced} transforms, but contains {len(blocks)}")
    if len(blocks) > 1 and not blocks[0].get("Transform", "").startswith("CompositeTransform"):
        raise NephiError(several_transforms(path))
    known = True
    for block in blocks:
        known = _check_block(block, path, len(blocks)) and known
    return known


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="latin-1")
    except OSError as error:
        raise NephiError(f"cannot read the transform {path}: {error.strerror}") from None


def _check_block(block: dict[str, str], path: Path, blocks: int) -> bool:
    name, d = _type(block["Transform"], path)
    if name == "CompositeTransform":
        if blocks == 1:
            raise NephiError(f"{path} is cut off: the composite transform has no parts")
        return True
    for key in ("Parameters", "FixedParameters"):
        if key not in block:
            raise NephiError(f"{path} is cut off: the {key} of a {name} are missing")
    values = {key: _numbers(block[key], path) for key in ("Parameters", "FixedParameters")}
    have, fixed = len(values["Parameters"]), values["FixedParameters"]
    if _has_known_counts(name, d, have, len(fixed), path):
        return True
    if name in _ON_GRIDS:
        if len(fixed) != d * (3 + d) or any(not v.is_integer() or v < 1 for v in fixed[:d]):
            raise NephiError(f"{path} is damaged: the fixed parameters of a {name} describe no grid")
        if have != d * math.prod(int(v) for v in fixed[:d]):
            raise NephiError(f"{path} is cut off or damaged: {have} parameters do not fill the grid of its {name}")
        return True
    return False


def _type(text: str, path: Path) -> tuple[str, int]:
    """The name and the dimension of a transform's type, such as ``AffineTransform_double_3_3``."""
    found = re.fullmatch(r"([^_]*)_(?:double|float)_(\d)_\d", text)
    if found is None:
        raise NephiError(f"{path} is damaged: '{text[:60]}' is not a transform")
    return found[1], int(found[2])


def _has_known_counts(name: str, d: int, have: int, fixed: int, path: Path) -> bool:
    """Whether the type is a listed one; raises NephiError where it is and the numbers are not as many as it has."""
    if name not in _COUNTS:
        return False
    need, known = _COUNTS[name](d)
    if have != need or fixed not in known:
        raise NephiError(
            f"{path} is cut off or damaged: a {d}D {name} has {need} parameters and {max(known)} fixed ones, "
            f"not {have} and {fixed}"
        )
    return True


def _numbers(text: str, path: Path) -> list[float]:
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        raise NephiError(f"{path} is damaged: '{text[:40]}' contains something other than numbers") from None
    if not all(abs(v) <= _FARTHEST for v in values):
        raise NephiError(f"{path} has parameters that are NaN, infinite or far out of range")
    return values


def check_mat(path: Path) -> None:
    """Raise NephiError unless a .mat file (version 4) contains complete pairs of parameters and fixed parameters."""
    data, at, arrays = path.read_bytes(), 0, []
    while at < len(data):
        if len(data) - at < 20:
            raise NephiError(f"{path} is cut off or damaged")
        kind, rows, columns, imaginary, length = struct.unpack_from("<5i", data, at)
        width = {0: 8, 10: 4}.get(kind)
        if width is None or imaginary or not 0 < length < 200 or rows < 0 or not 0 <= columns <= 1:
            raise NephiError(f"{path} is not an ITK transform in MATLAB format, or it is damaged")
        name = data[at + 20 : at + 20 + length].strip(b"\0").decode("latin-1")
        at += 20 + length + width * rows * columns
        if at > len(data):
            raise NephiError(f"{path} is cut off: the numbers of '{name}' are missing")
        arrays.append((name, rows * columns))
    if not arrays or len(arrays) % 2:
        raise NephiError(f"{path} is cut off: it has an odd number of arrays, {len(arrays)}")
    for (name, have), (_, fixed) in zip(arrays[::2], arrays[1::2], strict=True):
        kind, d = _type(name, path)
        _has_known_counts(kind, d, have, fixed, path)
