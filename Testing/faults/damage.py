"""Damage to a file, drawn from a seed."""

from __future__ import annotations

import gzip
import os
import re
import struct
from pathlib import Path

import numpy as np

KINDS = ("cut", "bits", "number", "inserted", "removed", "zeroed", "repeated", "swapped", "special")
_NUMBER = re.compile(rb"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_HOSTILE = (
    b"-1", b"0", b"1", b"2", b"-0.0", b"nan", b"inf", b"-inf", b"1e30", b"-1e30", b"1e-30", b"1e308", b"32767",
    b"65536",
    b"99999", b"2147483647", b"4294967296", b"99999999999999999999", b"abc", b"", b"0.5", b"1,5", b"null", b"[]", b"{}",
    b"[[[[", b"\"", b"\xff\xfe", b"\0", b"=1+1", b"9" * 2000,
)  # fmt: skip
# of a NIfTI-1 header: place and type of what it states
_NIFTI = [
    *[(40 + 2 * i, "h") for i in range(8)], (68, "h"), (70, "h"), (72, "h"), *[(76 + 4 * i, "f") for i in range(8)],
    (108, "f"), (112, "f"), (116, "f"), (123, "b"), (252, "h"), (254, "h"), *[(256 + 4 * i, "f") for i in range(18)],
    (344, "i"),
]  # fmt: skip
_FLOATS = (0.0, -1.0, 1.0, np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-30, 0.01, 352.5, 1e5, 2.0, 100.0)
_INTEGERS = (0, -1, 1, 2, 3, 5, 7, 8, 100, 127, 255, 2000, 32767, -32768, 512, 1007)


def damaged(path: Path, rng: np.random.Generator, head: int, others: list[bytes]) -> str:
    """Damage the file in place; returns how. ``head``: its first bytes that are most of interest (0: all)."""
    kind = str(rng.choice(KINDS, p=[0.16, 0.2, 0.2, 0.1, 0.08, 0.08, 0.03, 0.05, 0.1]))
    data = path.read_bytes()
    if kind == "special":
        return _special(path, rng)
    if kind == "number" and path.name.endswith((".nii", ".nii.gz", ".hdr")):
        data = _nifti_field(data, rng)
    elif kind == "number":
        data = _text_number(data, rng, head)
    elif kind == "swapped":
        data = others[int(rng.integers(len(others)))]
    else:
        data = _bytes(kind, data, rng, head)
    path.write_bytes(data)
    return kind


def _bytes(kind: str, data: bytes, rng: np.random.Generator, head: int) -> bytes:
    near = max(1, min(len(data), head or len(data)) if rng.random() < 0.6 else len(data))
    at, long = int(rng.integers(near)), int(rng.choice([1, 2, 7, 64, 512, 4096]))
    if kind == "cut":
        return data[: int(rng.integers(len(data)))]
    if kind == "bits":
        changed = bytearray(data)
        for place in rng.integers(0, near, int(rng.choice([1, 1, 1, 2, 8, 64]))):
            changed[place] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    if kind == "inserted":
        words = [
            b"\n",
            b" ",
            b"\0",
            b",",
            b";",
            b"nan",
            b"# note\n",
            b"1.5 ",
            rng.bytes(long),
            b"A" * long,
            b"{" * long,
        ]
        return data[:at] + words[int(rng.integers(len(words)))] + data[at:]
    if kind == "removed":
        return data[:at] + data[at + long :]
    if kind == "zeroed":
        return data[:at] + bytes(min(long, len(data) - at)) + data[at + long :]
    return data + (data if rng.random() < 0.5 else data[:at])  # repeated


def _text_number(data: bytes, rng: np.random.Generator, head: int) -> bytes:
    found = list(_NUMBER.finditer(data[: head or len(data)])) or list(_NUMBER.finditer(data))
    if not found:
        return _bytes("bits", data, rng, head)
    match = found[int(rng.integers(len(found)))]
    return data[: match.start()] + _HOSTILE[int(rng.integers(len(_HOSTILE)))] + data[match.end() :]


def _nifti_field(data: bytes, rng: np.random.Generator) -> bytes:
    zipped = data[:2] == b"\x1f\x8b"
    raw = bytearray(gzip.decompress(data) if zipped else data)
    for _ in range(int(rng.choice([1, 1, 2]))):
        at, kind = _NIFTI[int(rng.integers(len(_NIFTI)))]
        value = rng.choice(_FLOATS) if kind == "f" else int(rng.choice(_INTEGERS))
        struct.pack_into("<" + kind, raw, at, value if kind != "b" else (int(value) + 128) % 256 - 128)
    return gzip.compress(bytes(raw)) if zipped else bytes(raw)


def _special(path: Path, rng: np.random.Generator) -> str:
    path.unlink()
    kind = str(
        rng.choice(["pipe", "empty", "folder", "device", "endless", "missing", "dangling", "loop", "full folder"])
    )
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    elif kind in ("folder", "full folder"):
        path.mkdir()
        if kind == "full folder":
            (path / "1.dcm").write_bytes(rng.bytes(3000))
    elif kind in ("device", "endless"):
        path.symlink_to("/dev/null" if kind == "device" else "/dev/zero")
    elif kind in ("dangling", "loop"):
        path.symlink_to("nowhere" if kind == "dangling" else path.name)
    return kind
