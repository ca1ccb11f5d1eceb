"""Interfaces of nipype for the commands ``register``, ``warp`` and ``evaluate``; needs the extra ``nephi[nipype]``.

Their inputs are the arguments of the command line, with the names of its parser. Give files by absolute paths, as
always in nipype. Outputs are written to the working folder of the node unless ``output`` is set.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from nipype.interfaces.base import CommandLine, CommandLineInputSpec, Directory, File, TraitedSpec, isdefined, traits

from ..files.folder import ResultFolder
from .parser import command_parser

_KINDS = {int: traits.Int, float: traits.Float, None: traits.Str}


def _trait(action: argparse.Action, position: int | None) -> Any:
    """An argument of the parser as an input of nipype."""
    flag = max(action.option_strings, key=len, default="")
    how: dict[str, Any] = {"desc": action.help or "", "mandatory": action.required and action.dest != "output"}
    if position is not None:
        how["position"] = position
    if action.nargs == 0:
        return traits.Bool(argstr=flag, **how)
    how["argstr"] = f"{flag} %s".strip()
    if isinstance(action, argparse._AppendAction):
        return traits.List(traits.Str, **how | {"argstr": f"{flag} %s..."})
    if isinstance(action.nargs, int):
        return traits.List(traits.Str, minlen=action.nargs, maxlen=action.nargs, sep=" ", **how)
    if action.choices is not None:
        return traits.Enum(*action.choices, **how)
    return _KINDS[action.type](**how)  # type: ignore[index]


def _inputs(command: str) -> type[CommandLineInputSpec]:
    (subparsers,) = (a for a in command_parser()._actions if isinstance(a, argparse._SubParsersAction))
    found: dict[str, Any] = {}
    positions = 0
    for action in subparsers.choices[command]._actions:
        if not isinstance(action, argparse._HelpAction):
            place = None if action.option_strings else positions
            positions += place is not None
            found[action.dest] = _trait(action, place)
    return type(f"{command.title()}Inputs", (CommandLineInputSpec,), found)


class _Command(CommandLine):
    """A command of nephi; values are quoted for the shell here, which nipype leaves to its interfaces."""

    _written = "result"  # the default of --output

    def _format_arg(self, name: str, trait_spec: Any, value: Any) -> str:
        if isinstance(value, str):
            value = shlex.quote(value)
        elif isinstance(value, list):
            value = [shlex.quote(part) for part in value]
        return super()._format_arg(name, trait_spec, value)

    def _parse_inputs(self, skip: Any = None) -> list[str]:
        if not isdefined(self.inputs.output):
            self.inputs.output = self._written
        return super()._parse_inputs(skip)

    def _run_interface(self, runtime: Any, correct_return_codes: tuple[int, ...] = (0,)) -> Any:
        """Raises RuntimeError, with the command's output, if it failed; nipype itself would continue."""
        runtime = super()._run_interface(runtime, correct_return_codes)
        if runtime.returncode not in correct_return_codes:
            self.raise_exception(runtime)
        return runtime

    def _output(self) -> Path:
        return Path(self.inputs.output if isdefined(self.inputs.output) else self._written).absolute()


class _RegisterOutputs(TraitedSpec):
    folder = Directory(exists=True, desc="folder of the result, for Warp")
    registration = File(exists=True, desc="both maps")
    transform = File(exists=True, desc="fixed -> moving points: resamples the moving image")
    inverse_transform = File(exists=True, desc="moving -> fixed points")
    warped = File(exists=True, desc="moving image on the fixed grid")
    jacobian = File(exists=True, desc="Jacobian determinant on the fixed grid")
    report = File(exists=True, desc="all numbers, as JSON")


class Register(_Command):
    """``nephi register``; outputs that were not requested (``outputs``) are undefined."""

    _cmd = "nephi register"
    input_spec, output_spec = _inputs("register"), _RegisterOutputs

    def _list_outputs(self) -> dict[str, Any]:
        files = ResultFolder(self._output())
        names = ("registration", "transform", "inverse_transform", "warped", "jacobian", "report")
        written = {name: getattr(files, name) for name in names}
        return {"folder": str(files.path), **{name: str(path) for name, path in written.items() if path.exists()}}


class _FileOutputs(TraitedSpec):
    output = File(exists=True)


class Warp(_Command):
    """``nephi warp`` of images, label maps and points; the suffix of ``output`` gives the format."""

    _cmd = "nephi warp"
    _written = "warped.nii.gz"
    input_spec, output_spec = _inputs("warp"), _FileOutputs

    def _list_outputs(self) -> dict[str, Any]:
        return {"output": str(self._output())}


class Evaluate(Warp):
    """``nephi evaluate``: a transform's TRE, folds and Dice as a JSON file."""

    _cmd = "nephi evaluate"
    _written = "measures.json"
    input_spec = _inputs("evaluate")
