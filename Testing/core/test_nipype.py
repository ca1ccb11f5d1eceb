"""Interfaces of nipype: their inputs are the parser's arguments, and a workflow's node writes what it says."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

import nephi
import pytest
import SimpleITK as sitk
from nephi.cli.parser import command_parser
from nephi.synthetic.phantom import make_phantom

os.environ["NO_ET"] = "1"  # nipype asks a server for its newest version otherwise
pytest.importorskip("nipype")
from nephi.cli.nipype import Evaluate, Register, Warp


@pytest.fixture(autouse=True)
def on_the_path(tmp_path, monkeypatch):
    """The command ``nephi`` of these sources."""
    script = tmp_path / "bin" / "nephi"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m nephi "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(nephi.__file__).parents[1]))
    monkeypatch.chdir(tmp_path)


def value_for(action: argparse.Action):
    """Something that the argument takes, with what a shell would break."""
    if action.nargs == 0:
        return True
    if action.choices is not None and not isinstance(action, argparse._AppendAction):
        return list(action.choices)[-1]
    one = {int: 7, float: 2.5}.get(action.type, f"a {action.dest}'s; $HOME")
    if isinstance(action, argparse._AppendAction):
        return list(action.choices or (one, "two"))[:2]
    return [f"{one}{k}" for k in range(action.nargs)] if isinstance(action.nargs, int) else one


@pytest.mark.parametrize("interface", [Register, Warp, Evaluate])
def test_every_argument_arrives_as_it_was_given(interface):
    command = interface._cmd.split()[1]
    (subparsers,) = (a for a in command_parser()._actions if isinstance(a, argparse._SubParsersAction))
    actions = [a for a in subparsers.choices[command]._actions if not isinstance(a, argparse._HelpAction)]
    node = interface(**{action.dest: value_for(action) for action in actions})
    program, *words = shlex.split(node.cmdline)
    found = vars(command_parser().parse_args(words))
    assert program == "nephi" and len(actions) >= 8
    for action in actions:
        value = value_for(action)
        if isinstance(action.nargs, int) and action.nargs:  # of both images, under names of their own
            assert [found[f"{image}_{action.dest}"] for image in ("fixed", "moving")] == value
        else:
            assert found[action.dest] == value, action.dest


def test_nodes_register_and_warp(tmp_path):
    data = tmp_path / "my data"
    data.mkdir()
    make_phantom(dimension=2).write(data)
    fixed, moving = (str(data / f"{role}.nii.gz") for role in ("fixed", "moving"))
    node = Register(fixed=fixed, moving=moving, iterations=2, align="moments", outputs="transform", threads=1)
    node.inputs.fixed_mask, node.inputs.moving_mask = (str(data / f"{r}_mask.nii.gz") for r in ("fixed", "moving"))
    result = node.run().outputs
    assert Path(result.folder) == tmp_path / "result" and Path(result.transform).is_file()
    assert "warped" not in result.get_traitsfree()  # it was not asked for
    warped = Warp(result=result.folder, input=node.inputs.moving_mask, labels=True).run().outputs.output
    assert sitk.ReadImage(warped).GetSize() == sitk.ReadImage(fixed).GetSize()


def test_bad_input_is_an_error_with_the_line_that_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="none.nii"):
        Register(fixed=str(tmp_path / "none.nii"), moving=str(tmp_path / "none.nii")).run()
