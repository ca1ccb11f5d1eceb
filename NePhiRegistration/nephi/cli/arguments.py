"""Arguments that several commands have in common."""

from __future__ import annotations

import argparse

from ..files.cases import GUIDES_OF_BOTH
from ..files.folder import DEFAULT_OUTPUTS, OUTPUTS
from ..settings import ALIGNMENTS, PRESETS
from .progress import STYLES

FORMATS = ("itk", "compact", "ants", "nifti", "fsl", "x5", "bids")  # as in files.formats, which imports SimpleITK
DEVICE = "auto, cpu, cuda, cuda:N, xpu, xpu:N or mps (default auto: cuda if there is one, else cpu)"
PRESET = f"{', '.join(PRESETS)} (default balanced)"


def add_masks(p: argparse.ArgumentParser) -> None:
    p.add_argument("--fixed-mask", metavar="FILE", help="region of the fixed image to compare (lungs), on its grid")
    p.add_argument("--moving-mask", metavar="FILE", help="the same region of the moving image, on its grid")


def add_landmarks(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--fixed-landmarks",
        metavar="FILE",
        help="landmarks of the fixed image, to measure the error at: csv, fcsv, mrk.json, elastix or DIR-Lab txt, vtk",
    )
    p.add_argument(
        "--moving-landmarks", metavar="FILE", help="those of the moving image: row i corresponds to row i of the other"
    )


def add_labels(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--fixed-labels",
        metavar="FILE",
        help="label map of the fixed image (organs), to measure the agreement of each label",
    )
    p.add_argument("--moving-labels", metavar="FILE", help="the same of the moving image")


def add_series(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--series",
        action="append",
        default=[],
        metavar="UID",
        help="DICOM series to read where a folder holds several (default: the largest regular one); may be repeated",
    )


class _OfBoth(argparse.Action):
    """Two files, of the fixed and of the moving image, each under a name of its own."""

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
    p.add_argument("--fixed-exclude", metavar="FILE", help="mask of what is ignored (lesion, implant)")
    p.add_argument("--moving-exclude", metavar="FILE", help="the same of the moving image")
    p.add_argument(
        "--rigid-mask", metavar="FILE", help="label map on the fixed grid (bones): each connected part moves rigidly"
    )
    p.add_argument("--volume-mask", metavar="FILE", help="label map on the fixed grid: volumes in it do not change")
    p.add_argument(
        "--initial", metavar="TRANSFORM", help="transform or NePhi result to start from, in place of --align"
    )
    p.set_defaults(**{f"{image}_{kind}": None for kind in GUIDES_OF_BOTH for image in ("fixed", "moving")})


def add_how(p: argparse.ArgumentParser) -> None:
    """Options that say how a pair is registered, shared by ``register`` and ``batch``."""
    p.add_argument("--no-auto-mask", action="store_true", help="do not look for lungs in CTs that come without masks")
    p.add_argument("--preset", default=None, metavar="NAME", help=PRESET)
    p.add_argument("--settings", metavar="FILE", help="JSON with settings that differ from the preset's")
    p.add_argument("--model", metavar="NAME", help="start from a shipped model, by name, or from a model file")
    p.add_argument("--align", metavar="HOW", help=f"{', '.join(ALIGNMENTS)}, or a linear transform file (default auto)")
    p.add_argument(
        "--sliding", action="store_true", help="let the lungs slide along the masks' border, as at the pleura"
    )
    p.add_argument("--guide-sd", type=float, metavar="MM", help="standard deviation of guiding landmarks (default 1)")
    p.add_argument("--iterations", type=int, metavar="N", help="steps of the optimisation (default: of the preset)")
    p.add_argument("--seed", type=int, metavar="N", help="seed of all random numbers (default 0)")
    p.add_argument("--device", default="auto", help=DEVICE)
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads per pair (default: at most 4)")
    p.add_argument(
        "--outputs",
        metavar="LIST",
        help=f"what to write, separated by commas: {', '.join(OUTPUTS)} (default: {','.join(DEFAULT_OUTPUTS)})",
    )
    p.add_argument("--tolerances", metavar="FILE", help="JSON with a site's own tolerances of the verdict")
    p.add_argument("--no-report", action="store_true", help="leave out report.html and its pictures")
    p.add_argument(
        "--also",
        action="append",
        default=[],
        choices=FORMATS,
        help="also write the transforms in this format; may be repeated",
    )


def add_machine(p: argparse.ArgumentParser) -> None:
    """Where a command computes, and how it tells of it."""
    p.add_argument("--device", default="auto", help=DEVICE)
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: at most 4)")
    add_progress(p)


def add_progress(p: argparse.ArgumentParser) -> None:
    text = "how progress is shown: a bar (default), a JSON line per step, tags for Slicer, or nothing"
    p.add_argument("--progress", choices=STYLES, default="bar", help=text)
