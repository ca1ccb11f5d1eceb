"""Arguments that several commands have in common."""

from __future__ import annotations

import argparse

from ..files.cases import GUIDES_OF_BOTH
from ..files.folder import DEFAULT_OUTPUTS, OUTPUTS
from ..settings import ALIGNMENTS, PRESETS
from .progress import STYLES

FORMATS = ("itk", "compact", "ants", "nifti", "fsl", "x5", "bids")  # as in files.formats, which imports SimpleITK


def add_output(p: argparse.ArgumentParser, metavar: str, text: str, default: str | None = None) -> None:
    p.add_argument("-o", "--output", required=default is None, default=default, metavar=metavar, help=text)


def add_optional_output(p: argparse.ArgumentParser, text: str) -> None:
    p.add_argument("-o", "--output", metavar="FILE", help=text)


def add_reference(p: argparse.ArgumentParser, text: str) -> None:
    p.add_argument("--reference", metavar="IMAGE", help=text)


def add_repeatable(p: argparse.ArgumentParser, option: str, metavar: str, text: str) -> None:
    p.add_argument(option, action="append", default=[], metavar=metavar, help=text)


def add_series(p: argparse.ArgumentParser) -> None:
    text = "DICOM series to read if a folder contains several (default: the largest regular one); may be repeated"
    add_repeatable(p, "--series", "UID", text)


def add_pair(p: argparse.ArgumentParser, name: str, fixed: str, moving: str = "the same of the moving image") -> None:
    """A file for each of the two images."""
    p.add_argument(f"--fixed-{name}", metavar="FILE", help=fixed)
    p.add_argument(f"--moving-{name}", metavar="FILE", help=moving)


def add_masks(p: argparse.ArgumentParser) -> None:
    fixed = "region of the fixed image to compare (lungs), on its grid"
    add_pair(p, "mask", fixed, "the same region of the moving image, on its grid")


def add_landmarks(p: argparse.ArgumentParser) -> None:
    fixed = "landmarks of the fixed image, to measure the error at: csv, fcsv, mrk.json, elastix or DIR-Lab txt, vtk"
    add_pair(p, "landmarks", fixed, "those of the moving image: row i corresponds to row i of the fixed landmarks")


def add_labels(p: argparse.ArgumentParser) -> None:
    add_pair(p, "labels", "label map of the fixed image (organs), to measure the agreement of each label")


class _OfBoth(argparse.Action):
    """Two files, of the fixed and of the moving image, each stored under a name of its own."""

    def __call__(self, parser, namespace, values, option_string=None):
        for image, file in zip(("fixed", "moving"), values, strict=True):
            setattr(namespace, f"{image}_{self.dest}", file)


def add_guides(p: argparse.ArgumentParser) -> None:
    """What is known beyond the images, for one pair."""
    for option, text in (
        ("--guide-landmarks", "landmarks that guide the registration; row i of both files corresponds"),
        ("--guide-labels", "label maps with the same labels, whose borders guide the registration"),
    ):
        p.add_argument(option, nargs=2, metavar=("FIXED", "MOVING"), action=_OfBoth, help=text)
    add_pair(p, "exclude", "mask of a region to ignore (lesion, implant)")
    p.add_argument(
        "--rigid-mask", metavar="FILE", help="label map on the fixed grid (bones): each connected part moves rigidly"
    )
    p.add_argument("--volume-mask", metavar="FILE", help="label map on the fixed grid: each label keeps its volume")
    p.add_argument("--initial", metavar="TRANSFORM", help="transform or NePhi result to start from, instead of --align")
    p.set_defaults(**{f"{image}_{kind}": None for kind in GUIDES_OF_BOTH for image in ("fixed", "moving")})


def add_how(p: argparse.ArgumentParser) -> None:
    """Options that say how a pair is registered, shared by ``register`` and ``batch``."""
    p.add_argument("--no-auto-mask", action="store_true", help="do not segment the lungs in CTs without masks")
    add_preset(p)
    p.add_argument("--settings", metavar="FILE", help="JSON file with settings that differ from the preset's")
    p.add_argument("--model", metavar="NAME", help="start from a shipped model, by name, or from a model file")
    p.add_argument("--align", metavar="HOW", help=f"{', '.join(ALIGNMENTS)}, or a linear transform file (default auto)")
    p.add_argument("--sliding", action="store_true", help="let the lungs slide along the border of the masks")
    p.add_argument("--guide-sd", type=float, metavar="MM", help="standard deviation of guiding landmarks (default 1)")
    add_iterations(p, "steps of the optimisation (default: of the preset)")
    add_seed(p, "seed of all random numbers (default 0)", default=None)
    add_device(p)
    add_threads(p, "CPU threads per pair (default: at most 4)")
    p.add_argument(
        "--outputs",
        metavar="LIST",
        help=f"what to write, separated by commas: {', '.join(OUTPUTS)} (default: {','.join(DEFAULT_OUTPUTS)})",
    )
    add_tolerances(p)
    p.add_argument("--no-report", action="store_true", help="do not write report.html and its pictures")
    p.add_argument(
        "--also",
        action="append",
        default=[],
        choices=FORMATS,
        help="also write the transforms in this format; may be repeated",
    )


def add_preset(p: argparse.ArgumentParser, default: str | None = None) -> None:
    p.add_argument("--preset", default=default, metavar="NAME", help=f"{', '.join(PRESETS)} (default balanced)")


def add_iterations(p: argparse.ArgumentParser, text: str) -> None:
    p.add_argument("--iterations", type=int, metavar="N", help=text)


def add_seed(p: argparse.ArgumentParser, text: str, default: int | None = 0) -> None:
    p.add_argument("--seed", type=int, default=default, metavar="N", help=text)


def add_tolerances(p: argparse.ArgumentParser) -> None:
    p.add_argument("--tolerances", metavar="FILE", help="JSON file with the site's own tolerances for the verdict")


def add_machine(p: argparse.ArgumentParser) -> None:
    """Where a command computes, and how it shows its progress."""
    add_device(p)
    add_threads(p, "CPU threads (default: at most 4)")
    add_progress(p)


def add_device(p: argparse.ArgumentParser) -> None:
    text = "auto, cpu, cuda, cuda:N, xpu, xpu:N or mps (default auto: cuda if there is one, else cpu)"
    p.add_argument("--device", default="auto", help=text)


def add_threads(p: argparse.ArgumentParser, text: str) -> None:
    p.add_argument("--threads", type=int, metavar="N", help=text)


def add_progress(p: argparse.ArgumentParser) -> None:
    text = "how progress is shown: a bar (default), a JSON line per step, tags for Slicer, or nothing"
    p.add_argument("--progress", choices=STYLES, default="bar", help=text)
