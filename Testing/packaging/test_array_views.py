"""Views of an image's memory outlive no image: NumPy does not keep it, and what is read then is whatever lies there."""

from __future__ import annotations

import ast

import pytest
from places import ROOT


def views_of_what_nothing_keeps(source: str) -> list[int]:
    """Lines in which a view is taken of an image that an expression makes, so that no name holds it."""
    if "GetArrayViewFromImage" not in source:
        return []
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    views = (call for call in calls if getattr(call.func, "attr", "") == "GetArrayViewFromImage")
    return [call.lineno for call in views if not isinstance(call.args[0], ast.Name | ast.Attribute | ast.Subscript)]


@pytest.mark.parametrize("part", ["NePhiRegistration", "Testing", "benchmarks", "experiments", "examples"])
def test_no_view_is_taken_of_an_image_that_nothing_keeps(part):
    files = [path for path in (ROOT / part).rglob("*.py") if not any(p.startswith(".") for p in path.parts)]
    assert files
    found = [(p.name, line) for p in files for line in views_of_what_nothing_keeps(p.read_text(encoding="utf-8"))]
    assert not found


def test_it_is_seen_where_one_is():
    assert views_of_what_nothing_keeps(
        "a = sitk.GetArrayViewFromImage(mask)\nb = sitk.GetArrayViewFromImage(f(x))"
    ) == [2]
