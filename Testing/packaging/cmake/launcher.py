#!/usr/bin/env python3
"""Stands in for the application in ctest: are the tests' scripts and the modules' files where Slicer would look?"""

import ast
import re
import sys
from pathlib import Path


def compiles(script: Path) -> None:
    ast.parse(script.read_text(encoding="utf-8"), str(script))


def main(arguments: list[str]) -> None:
    places = []
    for position, argument in enumerate(arguments):
        if argument in ("--additional-module-path", "--additional-module-paths"):
            for value in arguments[position + 1 :]:
                if value.startswith("--"):
                    break
                places.append(Path(value))
    if not any((place / "NePhiRegistration.py").is_file() for place in places):
        raise SystemExit(f"no module NePhiRegistration.py in {places}")
    if "--python-script" in arguments:
        compiles(Path(arguments[arguments.index("--python-script") + 1]))
        return
    code = arguments[arguments.index("--python-code") + 1]
    folders, name = re.search(r"runUnitTest\((\[.*\]), '(\w+)'\)", code).groups()
    found = [Path(folder) / f"{name}.py" for folder in ast.literal_eval(folders)]
    found = [script for script in found if script.is_file()]
    if not found:
        raise SystemExit(f"no {name}.py in {folders}")
    compiles(found[0])


main(sys.argv[1:])
