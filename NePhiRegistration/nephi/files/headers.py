"""Headers of NRRD and MetaImage files, checked before ITK reads them: it crashes on some and believes others."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable
from pathlib import Path

from ..errors import NephiError, notice
from .sizes import check_memory

NRRD, META = (".nrrd", ".nhdr"), (".mha", ".mhd")
_LONGEST = 700  # bytes of a field's line; ITK crashes at about 1000
_PART = 2**22
_FARTHEST = 1e12  # of all lengths; ITK does not end on a direction of 1e308
_HEADER = 2**22  # bytes of a header: Slicer's segmentations and sequences keep much in it
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
}
_MM = ("", "mm", "millimeter", "millimeters", "millimetre", "millimetres", "???")
_SPACES = ("lps", "left-posterior-superior", "ras", "right-anterior-superior", "las", "left-anterior-superior")
_META_BYTES = {"MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4,
               "MET_LONG": 4, "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4,
               "MET_DOUBLE": 8}  # fmt: skip
_BYTE_ORDERS = "BinaryDataByteOrderMSB", "ElementByteOrderMSB"
_META_LISTS = {
    "ElementSpacing": 1,
    "ElementSize": 1,
    "Offset": 1,
    "Position": 1,
    "Origin": 1,
    "CenterOfRotation": 1,
    "TransformMatrix": 2,
    "Rotation": 2,
    "Orientation": 2,
}  # numbers: dimension to this power


def check_header(path: Path, role: str) -> bool:
    """Raise NephiError, with the reason, for a NRRD or MetaImage file that is damaged or contradicts itself.

    False where its voxels are in several files, which are not checked.
    """
    refuse = _refusal(path, role)
    (size, data, at, encoding), packed = _header(path, role)
    if data is None:
        return False
    try:
        if not data.is_file():
            raise refuse(f"its voxels should be in {data.name}, which is missing")
        held = data.stat().st_size - at
    except OSError as error:
        raise NephiError(f"{role}: cannot read {path}: {error.strerror or error}") from None
    check_memory(size, data, role)
    if encoding in ("gzip", "gz", "packed"):
        _check_packed(data, at, size, packed, refuse)
    if encoding == "raw" and held != size:
        what = "is cut off" if held < size else "has more than its header announces, so that one of the two is damaged"
        raise refuse(f"{data.name} {what}: {held} bytes of voxels instead of {size}")
    return True


def voxel_file(path: Path, role: str) -> Path | None:
    """The file with the voxels of a NRRD or MetaImage file, often itself; None if there are several.

    Raises NephiError for a damaged header.
    """
    return _header(path, role)[0][1]


def _refusal(path: Path, role: str) -> Callable[[str], NephiError]:
    return lambda reason: NephiError(f"{role}: cannot read {path}: {reason}")


def _header(path: Path, role: str) -> tuple[tuple[int, Path | None, int, str], int | None]:
    """As ``_meta``, of a file of either kind."""
    refuse = _refusal(path, role)
    try:
        with open(path, "rb") as file:
            head = file.read(_HEADER)
    except OSError as error:
        raise refuse(error.strerror or str(error)) from None
    found = (_nrrd(head, path, refuse), None) if path.name.lower().endswith(NRRD) else _meta(head, path, refuse)
    voxels = found[0][1]
    if voxels is not None and re.search(r"[\x00-\x1f\x7f-\x9f]", voxels.name):
        raise refuse("the name of the file that holds its voxels is damaged")
    return found


def _check_packed(path: Path, at: int, size: int, packed: int | None, refuse) -> None:
    """Raise unless compressed voxels unpack to ``size`` bytes with the right checksum; ITK crashes or does not notice.

    ``packed``: the number of bytes in the header; if fewer are there, ITK leaves voxels uninitialised.
    """
    unpacker, held = zlib.decompressobj(wbits=47), 0  # gzip or zlib
    try:
        with open(path, "rb") as file:
            file.seek(at)
            while not unpacker.eof and (part := file.read(_PART)):
                while part and not unpacker.eof and held <= size:
                    held += len(unpacker.decompress(part, _PART))
                    part = unpacker.unconsumed_tail
            used = file.tell() - at - len(unpacker.unused_data)
            rest = unpacker.unused_data or file.read(1)
    except zlib.error:
        raise refuse(f"the packed voxels of {path.name} are damaged") from None
    if not unpacker.eof or held != size or rest.strip(b"\0\r\n"):
        raise refuse(f"{path.name} is cut off or damaged: its voxels unpack to {held} bytes instead of {size}")
    if packed is not None and packed != used:
        raise refuse(f"the header announces {packed} packed bytes (CompressedDataSize), {path.name} has {used}")


def _nrrd(head: bytes, path: Path, refuse) -> tuple[int, Path | None, int, str]:
    """Bytes of the voxels, their file (None: several), where they begin, and how they are compressed."""
    if not re.match(rb"NRRD000[1-6]\r?\n", head):
        raise refuse("this is not an NRRD file")
    end = re.search(rb"\r?\n\r?\n", head)
    fields: dict[str, str] = {}
    for line in head[: end.start() if end else None].splitlines()[1:]:
        name, sign, value = line.partition(b":")
        if line.startswith(b"#") or value.startswith(b"=") or name == b"content":
            continue
        if not sign or len(line) > _LONGEST or b"\0" in line:
            raise refuse(f"the header holds a line that is not a field: {line[:40]!r}")
        key = name.decode("latin-1").strip().lower().replace(" ", "")
        if key in fields:
            raise refuse(f"the header names {key} twice")
        fields[key] = value.decode("latin-1").strip()
        if key == "datafile" and fields[key].upper().startswith("LIST"):
            break
    for key in ("type", "dimension", "sizes", "encoding"):
        if key not in fields:
            raise refuse(f"the header lacks its {key}; it is cut off or damaged")
    sizes = _whole(fields["sizes"])
    if sizes is None or fields["dimension"] != str(len(sizes)) or not 1 <= len(sizes) <= 8 or min(sizes) < 1:
        raise refuse(f"the header names {fields['dimension'][:20]} dimensions of the sizes {fields['sizes'][:60]}")
    width = _NRRD_BYTES.get(fields["type"].lower())
    if width is None:
        raise refuse(f"the voxels are of an unknown type, {fields['type'][:40]}")
    for key in ("spacedirections", "spaceorigin", "spacings"):
        if key in fields and not _is_sound(key, fields[key].lower(), len(sizes)):
            raise refuse(f"the header's {key} is {fields[key][:60]}; repair it")
    _check_space(fields, len(sizes), path, refuse)
    encoding = fields["encoding"].lower()
    size = width * math.prod(sizes)
    if "byteskip" in fields or "lineskip" in fields:
        encoding = "skipped"
    elsewhere = fields.get("datafile")
    if elsewhere is None:
        if end is None:
            raise refuse("the header has no end; the file is cut off or damaged")
        return size, path, end.end(), encoding
    if "%" in elsewhere or elsewhere.upper().startswith("LIST"):
        return size, None, 0, encoding
    return size, path.parent / elsewhere, 0, encoding


def _check_space(fields: dict[str, str], dimension: int, path: Path, refuse) -> None:
    """Raise where lengths are not in mm, or vectors not along the axes of LPS, as ITK takes both for granted."""
    units = re.findall(r'"([^"]*)"', fields.get("spaceunits", fields.get("units", "")))
    if other := [unit for unit in units if unit.strip().lower() not in _MM]:
        raise refuse(f"the header gives lengths in {other[0][:20]}; save it in mm")
    space = fields.get("space", "").lower().replace(" ", "-").removesuffix("-time")
    if "vector" in fields.get("kinds", "").lower() and space not in ("", *_SPACES[:2]):
        raise refuse(f"its vectors may be along the axes of {space}; save it in left-posterior-superior")
    if dimension == 3 and space not in _SPACES:
        notice(f"{path} names no anatomical space; left-posterior-superior is assumed.")


def _is_sound(key: str, text: str, count: int) -> bool:
    """Whether a field of an NRRD file has the right number of spacings or vectors, all finite and sane.

    NaN is an unknown spacing. If there are two numbers instead of one, ITK uses the first.
    """
    if key == "spacings":
        words = text.split()
        return len(words) == count and all(_is_sane(word) or word == "nan" for word in words)
    vectors = re.findall(rf"{_VECTOR}|none", text)
    if not re.fullmatch(rf"(?:{_VECTOR}|none)(?:\s*(?:{_VECTOR}|none))*", text):
        return False
    if len(vectors) != (count if key == "spacedirections" else 1):
        return False
    return all(_is_sane(word) for vector in vectors if vector != "none" for word in vector[1:-1].split(","))


_VECTOR = r"\([^()]*\)"


def _is_sane(word: str) -> bool:
    number = _number(word.strip())
    return number is not None and abs(number) <= _FARTHEST


def _meta(head: bytes, path: Path, refuse) -> tuple[tuple[int, Path | None, int, str], int | None]:
    """As ``_nrrd``, and the bytes of the compressed voxels if the header has them."""
    fields: dict[str, str] = {}
    at = 0
    while "ElementDataFile" not in fields:
        stop = head.find(b"\n", at)
        line = head[at : stop if stop >= 0 else None]
        key, sign, value = (part.decode("latin-1").strip() for part in line.partition(b"="))
        if stop < 0 and key != "ElementDataFile":
            raise refuse("this is not a MetaImage file, or its header is cut off")
        if line.strip():
            if not sign or len(line) > _LONGEST or not re.fullmatch(r"\w[^\x00-\x1f\x7f]*", key):
                raise refuse(f"the header holds a line that is not a field: {line[:40]!r}")
            if key in fields:
                raise refuse(f"the header names {key} twice")
            fields[key] = value
        at = stop + 1
    count = _whole(fields.get("NDims", ""))
    if count is None or len(count) != 1 or not 1 <= count[0] <= 8:
        raise refuse(f"the header names {fields.get('NDims', 'no')[:20]} dimensions (NDims)")
    sizes = _whole(fields.get("DimSize", ""))
    if sizes is None or len(sizes) != count[0] or min(sizes) < 1:
        raise refuse(f"the header names {count[0]} dimensions of the sizes {fields.get('DimSize', '')[:60]}")
    for key, power in _META_LISTS.items():
        words = fields[key].split() if key in fields else None
        if words is not None and (len(words) != count[0] ** power or not all(map(_is_sane, words))):
            raise refuse(f"the header's {key} is {fields[key][:60]}; repair it")
    for key in ("BinaryData", *_BYTE_ORDERS, "CompressedData"):  # of other words ITK takes the first letter
        if fields.get(key, "True").lower() not in ("true", "false", "t", "f", "1", "0"):
            raise refuse(f"the header's {key} is {fields[key][:20]}, neither True nor False")
    if len({fields[key].lower()[0] in "t1" for key in _BYTE_ORDERS if key in fields}) > 1:
        raise refuse(f"the header names two orders of bytes, {' and '.join(_BYTE_ORDERS)}")
    if (unit := fields.get("DistanceUnits", "mm").lower()) not in ("mm", "?", ""):
        raise refuse(f"the header gives lengths in {unit[:20]}; save it in mm")
    for key, usual in (("ElementToIntensityFunctionSlope", 1), ("ElementToIntensityFunctionOffset", 0)):
        if key in fields and _number(fields[key]) != usual:
            raise refuse(f"the header scales the values ({key} {fields[key][:20]}), which its reader does not do")
    kind = fields.get("ElementType", "").upper().removesuffix("_ARRAY")
    if kind not in _META_BYTES:
        raise refuse(f"the voxels are of an unknown type, {fields.get('ElementType', 'none')[:40]}")
    channels = _whole(fields.get("ElementNumberOfChannels", "1"))
    if channels is None or len(channels) != 1 or not 1 <= channels[0] <= 1000:
        raise refuse(f"the header names {fields['ElementNumberOfChannels'][:20]} values per voxel")
    if (skip := _whole(fields.get("HeaderSize", "0"))) is None or len(skip) != 1:
        raise refuse(f"the header's HeaderSize is {fields['HeaderSize'][:20]}")
    size, name = _META_BYTES[kind] * channels[0] * math.prod(sizes), fields["ElementDataFile"]
    packed = fields.get("CompressedData", "").lower() in ("true", "1", "t")
    text = fields.get("BinaryData", "true").lower() in ("false", "0", "f")
    encoding = "packed" if packed else "text" if text else "raw" if skip[0] == 0 else "skipped"
    named = _whole(fields.get("CompressedDataSize", "0"))
    if packed and (named is None or len(named) != 1):
        raise refuse(f"the header's CompressedDataSize is {fields['CompressedDataSize'][:20]}")
    length = named[0] or None if packed and named else None
    if name.upper() == "LOCAL":
        if packed and length is None:  # ITK reads the header as compressed voxels, too, and continues without any
            raise refuse("the header does not say how long the packed voxels are (CompressedDataSize)")
        return (size, path, at, encoding), length
    if "%" in name or name.upper().startswith("LIST"):
        return (size, None, 0, encoding), length
    return (size, path.parent / name, 0, encoding), length


def _whole(text: str) -> list[int] | None:
    words = text.split()
    return [int(w) for w in words] if words and all(re.fullmatch(r"\d{1,12}", w) for w in words) else None


_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf(inity)?)"


def _number(word: str) -> float | None:
    return float(word) if re.fullmatch(_NUMBER, word, re.IGNORECASE) else None
