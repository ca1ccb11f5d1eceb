#!/usr/bin/env python-real
"""NePhi as a command-line module of 3D Slicer: one registration, files in, files out.

The parameters are described in the XML file of the same name, which ``--xml`` prints. Progress goes to standard
output in Slicer's tags, an error is one line on standard error.
"""

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
INPUTS = (
    "fixedMask", "movingMask", "regions", "movingRegions", "fixedLandmarks", "movingLandmarks", "settings",
    "fixedExclude", "movingExclude", "rigidMask", "volumeMask",
)  # fmt: skip
GUIDES = ("GuideLandmarks", "GuideLabels")  # of both images
OPTIONS = ("preset", "model", "device", "seed")
OUTPUTS = {  # the engine's names of its files, see ``nephi.files.folder.ResultFolder``
    "outputTransform": "transform",
    "inverseTransform": "inverse_transform",
    "warpedVolume": "warped",
    "jacobianVolume": "jacobian",
    "report": "report",
}


def parser() -> argparse.ArgumentParser:
    """The arguments as Slicer gives them, named as in the XML file."""
    p = argparse.ArgumentParser(prog="NePhiRegistrationCLI", description=__doc__, allow_abbrev=False)
    p.add_argument("fixedVolume")
    p.add_argument("movingVolume")
    guides = (f"{image}{kind}" for kind in GUIDES for image in ("fixed", "moving"))
    others = ("align", "initialTransform", "initialDeformation", "returnparameterfile")
    for name in (*INPUTS, *OPTIONS, *OUTPUTS, *guides, *others):
        p.add_argument(f"--{name}", default="")
    p.add_argument("--guideSd", type=float, default=1.0)
    p.add_argument("--iterations", type=int, default=-1)
    p.add_argument("--noAutoMask", action="store_true")
    p.add_argument("--sliding", action="store_true")
    return p


def find_engine() -> None:
    """Make ``nephi`` importable: installed, or beside the scripted modules of the extension or the source tree."""
    if importlib.util.find_spec("nephi") is None:
        places = (HERE.parent / "qt-scripted-modules", HERE.parent / "NePhiRegistration")
        sys.path += [str(place) for place in places if (place / "nephi").is_dir()]


def flag(name: str) -> str:
    """The engine's option of a parameter: ``fixedMask`` is ``--fixed-mask``."""
    words = "".join("-" + c.lower() if c.isupper() else c for c in name)
    return f"--{words.lstrip('-')}"


def command(options: argparse.Namespace, folder: str) -> list[str]:
    """The arguments of ``nephi`` that do the same."""
    found = ["register", options.fixedVolume, options.movingVolume, "--output", folder]
    found += ["--progress", "slicer", "--no-report"]
    for name in (*INPUTS, *OPTIONS):
        if getattr(options, name):
            found += [flag(name), getattr(options, name)]
    for kind in GUIDES:
        both = [getattr(options, f"{image}{kind}") for image in ("fixed", "moving")]
        found += [flag(kind), *both] if any(both) else []
    found += ["--guide-sd", str(options.guideSd)]
    if options.initialDeformation:
        found += ["--initial", options.initialDeformation]
    elif options.initialTransform or options.align:
        found += ["--align", options.initialTransform or options.align]
    if options.iterations >= 0:
        found += ["--iterations", str(options.iterations)]
    return found + ["--no-auto-mask"] * options.noAutoMask + ["--sliding"] * options.sliding


def deliver(made: Path, wanted: Path) -> None:
    """Put a file of the result where it was asked for, in the format of its name, whole or not at all."""
    import SimpleITK as sitk
    from nephi.files.image import write_image
    from nephi.files.transform import write_transform
    from nephi.files.writing import whole

    with whole(wanted) as scratch:
        if wanted.name.endswith("".join(made.suffixes)):
            shutil.move(made, scratch)
        elif made.suffix == ".h5":
            write_transform(sitk.DisplacementFieldTransform(sitk.ReadTransform(str(made))), scratch)
        else:
            write_image(sitk.ReadImage(str(made)), scratch)


def return_parameters(report: dict) -> str:
    """Lines ``name = value``, as Slicer reads simple results."""
    values = {
        "foldedVoxels": report["folds"]["count"],
        "inverseConsistencyMm": report["inverse_consistency_mm"]["mean"],
        "fieldsDisagreementMm": report["fields_disagreement_mm"]["mean"],
        "landmarkErrorMm": report["tre_mm"]["after"]["mean"] if "tre_mm" in report else -1,
    }
    return "".join(f"{name} = {value}\n" for name, value in values.items())


def main(arguments: list[str]) -> int:
    if "--xml" in arguments:
        print(Path(__file__).with_suffix(".xml").read_text(encoding="utf-8"), end="")
        return 0
    options = parser().parse_args(arguments)
    for kind in GUIDES:
        if bool(getattr(options, f"fixed{kind}")) != bool(getattr(options, f"moving{kind}")):
            print(f"NePhiRegistrationCLI: give both fixed{kind} and moving{kind}, or neither", file=sys.stderr)
            return 2
    find_engine()
    from nephi.cli import main as nephi
    from nephi.files.folder import ResultFolder
    from nephi.files.writing import write_text

    with tempfile.TemporaryDirectory(prefix="nephi-") as folder:
        code = nephi(command(options, folder))
        if code:
            return code
        made = ResultFolder(Path(folder))
        report = json.loads(made.report.read_text(encoding="utf-8"))
        for name, file in OUTPUTS.items():
            if getattr(options, name):
                deliver(getattr(made, file), Path(getattr(options, name)))
        if options.returnparameterfile:
            write_text(options.returnparameterfile, return_parameters(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
