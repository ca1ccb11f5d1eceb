"""Every text of the module goes through Slicer's translation, in a form that Slicer's tools find."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SOURCE
from standin.application import MODULE_FOLDER

FILES = [
    MODULE_FOLDER / "NePhiRegistration.py",
    *(f for f in sorted((MODULE_FOLDER / "NePhiRegistrationLib").glob("*.py")) if f.name != "batch.py"),
]
_NOT_SHOWN = {  # sentences that are no text of the panel
    "summary.py": {'<div><span style="color:{color}">{sign}</span>&nbsp;{text}</div>'},
    "words.py": None,  # replaces parts of the engine's English messages
    "NePhiRegistration.py": {"The NePhi developers"},
    "display.py": {"NePhi Jacobian"},  # by which colour tables are found again
    "inputpanel.py": {"Selector"},
    "maps.py": {"NePhi expected error", "NePhi displacement", "NePhi forward-backward difference"},
    "verdict.py": None,  # finds parts of the engine's English reasons
    "methods.py": None,  # of a paper, in English
    "applying.py": {"Fixed", "Moving"},
    "outputs.py": {"Fixed", "Moving"},  # roles of references
}


def _texts(tree: ast.Module):
    """Strings of two words or more that are neither documentation nor in ``_(...)``, nor keys for the engine."""
    quiet = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            quiet.add(id(node.body[0].value))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("_", "translate"):
            quiet |= {id(part) for part in ast.walk(node)}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
            quiet |= {id(part) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in quiet:
            yield node.value


def _looks_like_text(text: str) -> bool:
    return bool(re.search(r"[A-Za-z]{2,} +[A-Za-z]{2,}", text)) or bool(re.fullmatch(r"[A-Z][a-z]+[.:]?", text))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_text_is_left_untranslated(file):
    allowed = _NOT_SHOWN.get(file.name, set())
    if allowed is None:
        return
    names = {"Red", "Green", "Yellow", "Icons", "Resources"}  # of nodes and folders
    left = {text for text in _texts(ast.parse(file.read_text(encoding="utf-8"))) if _looks_like_text(text)}
    assert left - allowed - names == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_texts_are_plain_strings_with_named_places(file):
    """Slicer's tools read them from the source: no f-strings, no expressions; and its ``tr`` is not wrapped."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_":
            (text,) = node.args
            assert isinstance(text, ast.Constant) and isinstance(text.value, str) and text.value, ast.dump(text)
            assert re.findall(r"\{(\w*)[^}]*\}", text.value) == re.findall(r"\{(\w+)\}", text.value)


@pytest.mark.skipif(not SOURCE, reason="SLICER_SOURCE_DIR names no checkout of Slicer")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_slicers_own_tool_finds_every_text(file):
    path = Path(SOURCE) / "Utilities" / "Scripts" / "update_translations.py"
    spec = importlib.util.spec_from_file_location("update_translations", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    context = tool.get_python_context(str(file))
    expected = f"NePhiRegistrationLib.{file.stem}" if file.parent.name == "NePhiRegistrationLib" else file.stem
    assert context == expected
    patched = ast.parse(tool.patch_python_source(file.read_bytes(), context, "FOUND"))
    calls = [node for node in ast.walk(patched) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not [call for call in calls if call.func.id == "_"]
    texts = [node.args[0].value for node in ast.walk(ast.parse(file.read_text())) if _is_text(node)]
    assert [call.args[1].value for call in calls if call.func.id == "FOUND"] == texts


def _is_text(node) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_"


_SHOW = """
import sys
sys.path[:0] = {paths!r}
import slicer
from standin.application import install
install({source!r})
asked = []
slicer.app.translate = lambda context, text: asked.append(context) or "<" + text + ">"
if not {source!r}:
    import slicer.i18n
    slicer.i18n.tr = lambda text: slicer.app.translate("", text)
from NePhiRegistrationLib import choices, display, job, words
from NePhiRegistrationLib import shown as looks
shown = [member.label() for c in choices.Choice.__subclasses__() for member in c]
shown += [text for text in looks._MEANING.values() if text]
shown += [job.Job().problem(), words.stage_text("optimising"), words.failure(3, [])]
assert len(shown) > 30 and all(t[0] == "<" and t[-1] == ">" for t in shown), shown
if {source!r}:
    assert {{"NePhiRegistrationLib.choices", "NePhiRegistrationLib.job", "NePhiRegistrationLib.words"}} <= set(asked)
"""


def test_a_translation_is_shown():
    """With a checkout by Slicer's own ``tr``, which takes the context from the file that calls it."""
    code = _SHOW.format(paths=[str(Path(__file__).parent), str(MODULE_FOLDER)], source=SOURCE)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
