"""What the packaging tests share: places in the source tree, and the variables of a CMake file."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "NePhiRegistration"
CLI = ROOT / "NePhiRegistrationCLI"

sys.path.insert(0, str(MODULE))  # where the package is not installed


def cmake_variables(path: Path) -> dict[str, list[str]]:
    """Arguments of every ``set(NAME ...)`` of a CMake file; quoted ones are one, comments are left out."""
    text = re.sub(r"(?m)^\s*#.*$", "", path.read_text(encoding="utf-8"))
    found = {}
    for name, body in re.findall(r"set\(\s*(\w+)((?:\s+(?:\"[^\"]*\"|[^\s\")]+))*)\s*\)", text):
        found[name] = [quoted or bare for quoted, bare in re.findall(r"\"([^\"]*)\"|([^\s\"]+)", body)]
    return found
