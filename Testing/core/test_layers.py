"""The folders are the outline: no import of the package runs up, none closes a circle, few wait inside functions."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import nephi
import pytest

CORE = Path(nephi.__file__).parent
# from the bottom to the top: a room imports from itself and from those before it
ROOMS = (
    "version", "both", "errors", "runfolder", "journal", "paths", "registry", "limits", "legacy_settings", "config",
    "settings", "process", "device", "space", "files",
    "images", "maps",
    "fitting", "measure", "synthetic", "learning", "preprocessing", "result", "registration", "report",
    "commission", "cli", "__init__", "__main__",
)  # fmt: skip
# imports that run up and still have to go; one that is gone may not stay in this list
PENDING: set[tuple[str, str]] = set()
INSIDE = {  # imports inside functions, and why
    "cli.cluster": "submitit is optional",
    "learning.state": "TensorBoard is optional",
    "device": "resource is missing on Windows",
}


def modules() -> dict[str, ast.Module]:
    files = CORE.rglob("*.py")
    return {
        ".".join(f.relative_to(CORE).with_suffix("").parts): ast.parse(f.read_text(encoding="utf-8")) for f in files
    }


MODULES = modules()


def imports(name: str, node: ast.AST) -> set[str]:
    """Modules of the package that the relative imports below ``node`` name, without those for type checkers alone."""
    found: set[str] = set()
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return found
    if isinstance(node, ast.ImportFrom) and node.level:
        folder = name.split(".")[: -node.level]
        base = [*folder, *(node.module or "").split(".")] if node.module else folder
        for alias in node.names:
            for path in ([*base, alias.name], base, [*base, "__init__"]):
                if ".".join(path) in MODULES:
                    found.add(".".join(path))
                    break
            else:
                raise AssertionError(f"{name} imports {alias.name} from nowhere in the package")
    for child in ast.iter_child_nodes(node):
        found |= imports(name, child)
    return found


IMPORTS = {name: imports(name, tree) for name, tree in MODULES.items()}


def room(name: str) -> str:
    return name.partition(".")[0]


def test_every_module_is_in_a_room():
    assert {room(name) for name in MODULES} == set(ROOMS)


@pytest.mark.parametrize("name", MODULES)
def test_no_import_runs_up(name):
    up = {(name, other) for other in IMPORTS[name] if ROOMS.index(room(other)) > ROOMS.index(room(name))}
    assert up == {arrow for arrow in PENDING if arrow[0] == name}


def test_no_import_closes_a_circle():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_no_absolute_import_of_the_package_inside_it():
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(str(found).partition(".")[0] == "nephi" for found in names), name


def test_few_imports_wait_inside_functions_and_all_for_a_reason():
    waiting = set()
    for name, tree in MODULES.items():
        for function in (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.Lambda))):
            if any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(function)):
                waiting.add(name)
    assert waiting == set(INSIDE)
