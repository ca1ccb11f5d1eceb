"""The arguments of ``nephi register | batch | summarise | warp | convert | jacobian | evaluate | structures | lungs
| demo | devices | dirlab | train | breathe | commission | app``."""

from __future__ import annotations

import argparse

from ..files.cases import GUIDES_OF_BOTH, ROLES
from ..files.folder import DEFAULT_OUTPUTS, OUTPUTS
from ..settings import ALIGNMENTS, PRESETS
from ..version import __version__
from .progress import STYLES

FORMATS = ("itk", "compact", "ants", "nifti", "fsl", "x5", "bids")  # as in files.formats, which imports SimpleITK


def command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nephi", description="Deformable registration of 2D and 3D images with neural deformation fields."
    )
    parser.add_argument("--version", action="version", version=f"nephi {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    for add in (
        _add_register,
        _add_batch,
        _add_summarise,
        _add_devices,
        _add_warp,
        _add_convert,
        _add_jacobian,
        _add_evaluate,
        _add_structures,
        _add_lungs,
        _add_demo,
        _add_train,
        _add_breathe,
        _add_commission,
        _add_dirlab,
        _add_app,
    ):
        add(subparsers)
    return parser


def _add_register(subparsers) -> None:
    p = subparsers.add_parser("register", help="register a moving image to a fixed one and measure the result")
    p.add_argument("fixed", metavar="FIXED", help="image file or DICOM folder (for lungs: exhale)")
    p.add_argument("moving", metavar="MOVING", help="image file or DICOM folder (for lungs: inhale)")
    p.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for transforms, images and report")
    p.add_argument("--fixed-mask", metavar="FILE", help="region to compare (lungs), on the fixed image's grid")
    p.add_argument("--moving-mask", metavar="FILE")
    p.add_argument("--fixed-landmarks", metavar="FILE", help="csv, fcsv, mrk.json, elastix or DIR-Lab txt, vtk")
    p.add_argument("--moving-landmarks", metavar="FILE")
    p.add_argument(
        "--regions",
        metavar="FILE",
        help="label map or segmentation over the fixed image (lobes), for volume change and ventilation of each",
    )
    p.add_argument("--moving-regions", metavar="FILE", help="the same over the moving image, for how well each is met")
    _add_labels(p)
    _add_series(p)
    _add_guides(p)
    _add_how(p)
    p.add_argument(
        "--preview", type=float, metavar="SECONDS", help="seconds between updates of DIR/preview.nrrd while it runs"
    )
    p.add_argument("--progress", choices=STYLES, default="bar")
    p.set_defaults(run=("commands", "register_command"))


def _add_batch(subparsers) -> None:
    p = subparsers.add_parser("batch", help="register a list of pairs; resumes an interrupted batch")
    p.add_argument("pairs", metavar="PAIRS", help=f"CSV file with the columns name, {', '.join(ROLES)}")
    p.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="one folder per pair and summary.csv are written here"
    )
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="pairs at a time (default 1)")
    p.add_argument("--shard", metavar="I/N", help="only part I (1 to N) of the list; others may run at the same time")
    _add_how(p)
    _add_engine(p)
    p.set_defaults(run=("cohort", "batch_command"))


def _add_engine(p: argparse.ArgumentParser) -> None:
    """Options of a batch that other machines work on."""
    p.add_argument(
        "--engine",
        choices=("local", "slurm", "processes"),
        default="local",
        help="who registers the pairs: this process, jobs of SLURM, or the same jobs as processes, to try it out",
    )
    p.add_argument("--cluster", metavar="FILE", help="JSON with settings of the jobs; the flags below go before it")
    p.add_argument("--partition", metavar="NAME")
    p.add_argument("--time", type=int, metavar="MINUTES", help="limit of a job, which is then requeued (default 240)")
    p.add_argument("--memory", type=float, metavar="GB", help="of a job (default 8)")
    p.add_argument("--gpus", type=int, metavar="N", help="of a job (default 0)")
    p.add_argument("--array", type=int, metavar="N", help="jobs at most (default 100)")


def _add_convert(subparsers) -> None:
    p = subparsers.add_parser("convert", help="write a transform in the format of another program")
    p.add_argument(
        "transform",
        nargs="+",
        metavar="TRANSFORM",
        help="folder of a registration, or fixed -> moving transforms in the order in which points go through them",
    )
    p.add_argument("--to", required=True, choices=(*FORMATS, "dicom"), help="the format")
    p.add_argument(
        "-o", "--output", required=True, metavar="NAME", help="what the files' names begin with, with folder"
    )
    p.add_argument("--reference", metavar="IMAGE", help="grid of the field; for dicom the folder of the fixed series")
    p.add_argument("--moving", metavar="IMAGE", help="the moving image, for fsl; for dicom the folder of its series")
    p.add_argument("--error", type=float, metavar="MM", help="what a coarser grid may cost, of a registration's folder")
    _add_series(p)
    p.set_defaults(run=("convert", "convert_command"))


def _add_summarise(subparsers) -> None:
    p = subparsers.add_parser("summarise", help="write the table of a batch from the folders of its pairs")
    p.add_argument("folder", metavar="DIR", help="where shards or other runs have written the folders of pairs")
    p.add_argument("--pairs", metavar="PAIRS", help="the list: its order, and what is missing (default: what is there)")
    p.set_defaults(run=("summarise", "summarise_command"))


def _add_devices(subparsers) -> None:
    p = subparsers.add_parser("devices", help="list the available devices as JSON")
    p.set_defaults(run=("commands", "devices_command"))


def _add_warp(subparsers) -> None:
    p = subparsers.add_parser("warp", help="apply a registration to an image, a label map or points")
    p.add_argument("result", metavar="DIR", help="folder of a registration, or a fixed -> moving transform file")
    p.add_argument("input", metavar="INPUT", help="moving image, label map, landmark file or structure set")
    p.add_argument("-o", "--output", required=True, metavar="FILE")
    p.add_argument("--reference", metavar="IMAGE", help="image that gives the output grid (default: the fixed image)")
    p.add_argument("--labels", action="store_true", help="nearest neighbour, for label maps")
    p.add_argument(
        "--dicom",
        metavar="FIXED",
        help="write DICOM: INPUT, a folder of a series, as a series into the folder --output, or INPUT, a segmentation "
        "object (SEG) or RT structure set, as the file --output; FIXED is the folder of the fixed image's series",
    )
    p.add_argument("--inverse", action="store_true", help="moving -> fixed map: fixed images or moving points")
    _add_series(p)
    p.set_defaults(run=("commands", "warp_command"))


def _add_jacobian(subparsers) -> None:
    p = subparsers.add_parser("jacobian", help="exact Jacobian determinant of the map on any grid")
    p.add_argument("result", metavar="DIR")
    p.add_argument("-o", "--output", required=True, metavar="FILE")
    p.add_argument("--reference", metavar="IMAGE", help="grid to evaluate on (default: the fixed grid)")
    p.add_argument("--mask", metavar="FILE", help="evaluate inside this mask only, 1 elsewhere")
    _add_series(p)
    p.set_defaults(run=("commands", "jacobian_command"))


def _add_evaluate(subparsers) -> None:
    p = subparsers.add_parser("evaluate", help="measure a transform of any method: TRE, folds, Dice")
    p.add_argument("transform", metavar="TRANSFORM", help="fixed -> moving transform (.h5, .tfm, displacement image)")
    p.add_argument("--fixed", required=True, metavar="IMAGE")
    p.add_argument("--moving", metavar="IMAGE", help="needed for landmarks in voxels and for Dice")
    p.add_argument("--inverse", metavar="TRANSFORM", help="moving -> fixed transform: inverse consistency")
    p.add_argument("--alignment", metavar="FILE", help="initial linear fixed -> moving transform, for 'before'")
    p.add_argument("--fixed-mask", metavar="FILE")
    p.add_argument("--moving-mask", metavar="FILE")
    p.add_argument("--fixed-landmarks", metavar="FILE")
    p.add_argument("--moving-landmarks", metavar="FILE")
    _add_labels(p)
    p.add_argument("-o", "--output", metavar="FILE", help="JSON file (default: standard output)")
    p.add_argument("--landmark-errors", metavar="FILE", help="CSV file of the error at each landmark")
    _add_series(p)
    p.set_defaults(run=("evaluate", "evaluate_command"))


def _add_structures(subparsers) -> None:
    p = subparsers.add_parser("structures", help="list an RT structure set, or make a label map of its contours")
    p.add_argument("input", metavar="FILE", help="RT structure set (DICOM)")
    p.add_argument("--reference", metavar="IMAGE", help="image whose grid the label map lies on")
    p.add_argument("--roi", action="append", default=[], metavar="NAME", help="label 1, 2, ... (default: all)")
    p.add_argument("-o", "--output", metavar="FILE", help="label map (default: only list what there is)")
    _add_series(p)
    p.set_defaults(run=("structures", "structures_command"))


def _add_lungs(subparsers) -> None:
    p = subparsers.add_parser("lungs", help="find the lungs of a chest CT, right and left, to be corrected or measured")
    p.add_argument("image", metavar="CT", help="chest CT: a file or a DICOM folder")
    p.add_argument("-o", "--output", required=True, metavar="FILE", help="label map: 1 right, 2 left, 3 not told apart")
    _add_series(p)
    p.set_defaults(run=("lungs", "lungs_command"))


def _add_demo(subparsers) -> None:
    p = subparsers.add_parser("demo", help="register a generated inhale/exhale phantom with a known map")
    p.add_argument("-o", "--output", default="nephi-demo", metavar="DIR")
    p.add_argument("--preset", default="balanced", metavar="NAME")
    p.add_argument("--seed", type=int, default=0, metavar="N")
    p.add_argument("--device", default="auto")
    p.add_argument("--progress", choices=STYLES, default="bar")
    p.set_defaults(run=("commands", "demo_command"))


def _add_train(subparsers) -> None:
    p = subparsers.add_parser("train", help="train a model that predicts registrations in one pass")
    p.add_argument("settings", metavar="SETTINGS", nargs="?", help="JSON file (see the documentation of training)")
    p.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the model, the log and the cache")
    p.add_argument("--data", metavar="PAIRS", help="list of pairs as for batch, shapes-solid or shapes-hollow")
    p.add_argument("--validation", metavar="PAIRS", help="list of pairs by which the best model is chosen")
    p.add_argument(
        "--start", metavar="NAME", help="start from the weights of a shipped model, by name, or of a model file"
    )
    p.add_argument("--coarse", metavar="NAME", help="multi-resolution: trained model used, frozen, as the coarse stage")
    p.add_argument("--iterations", type=int, metavar="N")
    p.add_argument("--seed", type=int, metavar="N")
    p.add_argument("--resume", action="store_true", help="resume the run in DIR")
    _add_machine(p)
    p.set_defaults(run=("training", "train_command"))


def _add_machine(p: argparse.ArgumentParser) -> None:
    """Where a command computes, and how it tells of it."""
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, xpu, xpu:N or mps")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: at most 4)")
    p.add_argument("--progress", choices=STYLES, default="bar")


def _add_breathe(subparsers) -> None:
    p = subparsers.add_parser("breathe", help="generate pairs with known maps, to train on or to test with")
    p.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="one folder per pair and pairs.csv are written here"
    )
    p.add_argument("--count", type=int, default=100, metavar="N")
    p.add_argument("--seed", type=int, default=0, metavar="N")
    p.add_argument(
        "--ct", nargs="*", default=[], metavar="FILE", help="chest CTs to deform (default: procedural chests)"
    )
    p.add_argument("--masks", nargs="*", default=[], metavar="FILE", help="lung masks of these CTs, in the same order")
    p.set_defaults(run=("training", "breathe_command"))


def _add_commission(subparsers) -> None:
    p = subparsers.add_parser("commission", help="register digital phantoms with known maps here and record the errors")
    p.add_argument("output", metavar="DIR", nargs="?", help="folder for commission.json, commission.html and results")
    p.add_argument("--check", metavar="FILE", help="tell whether a commission.json was changed since it was written")
    p.add_argument("--quick", action="store_true", help="coarser phantoms and the preset fast: two minutes or three")
    p.add_argument("--preset", default=None, metavar="NAME", help=f"{', '.join(PRESETS)} (default balanced)")
    p.add_argument("--limits", metavar="FILE", help="JSON with the limits of the errors that a site sets")
    p.add_argument("--tolerances", metavar="FILE", help="JSON with the verdict's tolerances that a site sets")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of the registrations")
    _add_machine(p)
    p.set_defaults(run=("commission", "commission_command"))


def _add_app(subparsers) -> None:
    p = subparsers.add_parser("app", help="the registration panel in a browser")
    p.add_argument(
        "folder", nargs="?", default=".", metavar="FOLDER", help="whose files can be opened (default: this one)"
    )
    p.add_argument("--host", default="127.0.0.1", metavar="NAME", help="listen here, so that others reach it, too")
    p.add_argument("--port", type=int, metavar="N", help="default: the first free one from 8650")
    p.add_argument("--sessions", type=int, default=4, metavar="N", help="at most so many side by side (default 4)")
    p.add_argument("--no-browser", action="store_true", help="only print the address")
    p.set_defaults(run=("app", "app_command"))


def _add_dirlab(subparsers) -> None:
    p = subparsers.add_parser("dirlab", help="convert or score DIR-Lab's lung CT (COPDgene, 4DCT) with 300 landmarks")
    p.add_argument("folder", metavar="FOLDER", help="where DIR-Lab's files are, in folders of any names")
    p.add_argument("--set", required=True, dest="collection", metavar="SET", help="copdgene or 4dct")
    p.add_argument("--cases", type=int, nargs="+", metavar="N", help="default: all ten, or those with a result")
    p.add_argument("--fixed", default="exhale", metavar="PHASE", help="the fixed image: exhale (default) or inhale")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--pairs", metavar="OUT", help="write images, landmarks and pairs.csv for 'nephi batch' here")
    what.add_argument("--results", metavar="DIR", help="score its copd1/transform.h5, ...; table in DIR/dirlab.csv")
    p.set_defaults(run=("dirlab", "dirlab_command"))


def _add_labels(p: argparse.ArgumentParser) -> None:
    text = "label map on the {} grid (organs): with that of the other image, how well each label is met"
    for role in ("fixed", "moving"):
        p.add_argument(f"--{role}-labels", metavar="FILE", help=text.format(f"{role} image's"))


def _add_series(p: argparse.ArgumentParser) -> None:
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


def _add_guides(p: argparse.ArgumentParser) -> None:
    """What is known beyond the images, for one pair."""
    for option, text in (
        ("--guide-landmarks", "landmarks that guide the registration, row by row"),
        ("--guide-labels", "label maps with the same labels, whose borders guide it"),
    ):
        p.add_argument(option, nargs=2, metavar=("FIXED", "MOVING"), action=_OfBoth, help=text)
    p.add_argument("--fixed-exclude", metavar="FILE", help="mask of what must not count (lesion, implant)")
    p.add_argument("--moving-exclude", metavar="FILE")
    p.add_argument("--rigid-mask", metavar="FILE", help="labels on the fixed grid; each connected part moves rigidly")
    p.add_argument("--volume-mask", metavar="FILE", help="labels on the fixed grid whose volume does not change")
    p.add_argument(
        "--initial", metavar="TRANSFORM", help="transform or NePhi result that is refined, instead of --align"
    )
    p.set_defaults(**{f"{image}_{kind}": None for kind in GUIDES_OF_BOTH for image in ("fixed", "moving")})


def _add_how(p: argparse.ArgumentParser) -> None:
    """Options that say how a pair is registered, shared by ``register`` and ``batch``."""
    p.add_argument("--no-auto-mask", action="store_true", help="do not detect lungs in CTs that come without masks")
    p.add_argument("--preset", default=None, metavar="NAME", help=f"{', '.join(PRESETS)} (default balanced)")
    p.add_argument("--settings", metavar="FILE", help="JSON with settings that differ from the preset's")
    p.add_argument("--model", metavar="NAME", help="start from a shipped model, by name, or from a model file")
    p.add_argument("--align", metavar="HOW", help=f"{', '.join(ALIGNMENTS)}, or a linear transform file")
    p.add_argument("--sliding", action="store_true", help="motion may jump along the masks' border, as at the pleura")
    p.add_argument(
        "--guide-sd", type=float, metavar="MM", help="standard deviation of landmarks that guide (default 1)"
    )
    p.add_argument("--iterations", type=int, metavar="N")
    p.add_argument("--seed", type=int, metavar="N")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, xpu, xpu:N or mps")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads per pair (default: at most 4)")
    p.add_argument(
        "--outputs",
        metavar="LIST",
        help=f"what to write, separated by commas: {', '.join(OUTPUTS)} (default: {','.join(DEFAULT_OUTPUTS)})",
    )
    p.add_argument("--tolerances", metavar="FILE", help="JSON with the verdict's tolerances that a site sets")
    p.add_argument("--no-report", action="store_true", help="leave out report.html and its pictures")
    p.add_argument(
        "--also", action="append", default=[], choices=FORMATS, help="write the transforms in this format, too"
    )
