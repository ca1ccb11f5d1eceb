"""The arguments of ``nephi register | batch | summarise | warp | convert | jacobian | evaluate | structures | lungs
| demo | devices | dirlab | train | breathe | commission | app``."""

from __future__ import annotations

import argparse
from typing import NoReturn

from ..files.cases import ROLES
from ..version import __version__
from .arguments import (
    DEVICE,
    FORMATS,
    PRESET,
    add_guides,
    add_how,
    add_labels,
    add_landmarks,
    add_machine,
    add_masks,
    add_progress,
    add_series,
)


class _Parser(argparse.ArgumentParser):
    """argparse's parser, which tells a wrong argument in one line, as all other errors are told."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"nephi: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args=None, namespace=None):
        """A command tells of what it does not know itself, as its help lists what it does."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown


def command_parser() -> argparse.ArgumentParser:
    parser = _Parser(
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


def _command(subparsers, name: str, what: str) -> argparse.ArgumentParser:
    return subparsers.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")


def _add_register(subparsers) -> None:
    p = _command(subparsers, "register", "register a moving image to a fixed one and measure the result")
    p.add_argument("fixed", metavar="FIXED", help="image file or DICOM folder (for lungs: exhale)")
    p.add_argument("moving", metavar="MOVING", help="image file or DICOM folder (for lungs: inhale)")
    p.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for transforms, images and report")
    add_masks(p)
    add_landmarks(p)
    p.add_argument(
        "--regions",
        metavar="FILE",
        help="label map or segmentation of the fixed image (lobes), to measure volume change and ventilation of each",
    )
    p.add_argument(
        "--moving-regions", metavar="FILE", help="the same of the moving image, to measure the agreement of each"
    )
    add_labels(p)
    add_series(p)
    add_guides(p)
    add_how(p)
    p.add_argument(
        "--preview",
        type=float,
        metavar="SECONDS",
        help="write the displacement so far to DIR/preview.nrrd every so many seconds while it runs",
    )
    add_progress(p)
    p.set_defaults(run=("commands", "register_command"))


def _add_batch(subparsers) -> None:
    p = _command(subparsers, "batch", "register a list of pairs; resumes an interrupted batch")
    p.add_argument("pairs", metavar="PAIRS", help=f"CSV file with the columns name, {', '.join(ROLES)}")
    p.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="one folder per pair and summary.csv are written here"
    )
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="pairs registered at a time (default 1)")
    p.add_argument(
        "--shard", metavar="I/N", help="only the I-th of N parts of the list; the other parts may run at the same time"
    )
    add_how(p)
    _add_engine(p)
    p.set_defaults(run=("cohort", "batch_command"))


def _add_engine(p: argparse.ArgumentParser) -> None:
    """Options of a batch that other machines work on."""
    p.add_argument(
        "--engine",
        choices=("local", "slurm", "processes"),
        default="local",
        help="what registers the pairs: this process (local, the default), SLURM jobs, or the same jobs as processes "
        "on this machine, to try them out",
    )
    p.add_argument(
        "--cluster", metavar="FILE", help="JSON with settings of the SLURM jobs; the options below override it"
    )
    p.add_argument("--partition", metavar="NAME", help="SLURM partition (default: the cluster's own)")
    p.add_argument(
        "--time",
        type=int,
        metavar="MINUTES",
        help="time limit of a job, which is requeued when it is reached (default 240)",
    )
    p.add_argument("--memory", type=float, metavar="GB", help="memory of a job (default 8)")
    p.add_argument("--gpus", type=int, metavar="N", help="GPUs of a job (default 0)")
    p.add_argument("--array", type=int, metavar="N", help="number of jobs, at most (default 100)")


def _add_convert(subparsers) -> None:
    p = _command(subparsers, "convert", "write a transform in the format of another program")
    p.add_argument(
        "transform",
        nargs="+",
        metavar="TRANSFORM",
        help="folder of a registration, or fixed -> moving transforms in the order in which points go through them",
    )
    p.add_argument("--to", required=True, choices=(*FORMATS, "dicom"), help="the format")
    p.add_argument(
        "-o", "--output", required=True, metavar="NAME", help="folder and beginning of the names of the files written"
    )
    p.add_argument(
        "--reference",
        metavar="IMAGE",
        help="image that gives the grid of the field; for dicom the folder of the fixed series",
    )
    p.add_argument("--moving", metavar="IMAGE", help="the moving image, for fsl; for dicom the folder of its series")
    p.add_argument(
        "--error",
        type=float,
        metavar="MM",
        help="allow a coarser grid with at most this error, for the folder of a registration",
    )
    add_series(p)
    p.set_defaults(run=("convert", "convert_command"))


def _add_summarise(subparsers) -> None:
    p = _command(subparsers, "summarise", "write the table of a batch from the folders of its pairs")
    p.add_argument("folder", metavar="DIR", help="folder that holds the folders of the pairs")
    p.add_argument(
        "--pairs",
        metavar="PAIRS",
        help="list of pairs, for its order and to name the missing ones (default: the folders found)",
    )
    p.set_defaults(run=("summarise", "summarise_command"))


def _add_devices(subparsers) -> None:
    p = _command(subparsers, "devices", "list the available devices as JSON")
    p.set_defaults(run=("commands", "devices_command"))


def _add_warp(subparsers) -> None:
    p = _command(subparsers, "warp", "apply a registration to an image, a label map or points")
    p.add_argument("result", metavar="DIR", help="folder of a registration, or a fixed -> moving transform file")
    p.add_argument("input", metavar="INPUT", help="moving image, label map, landmark file or structure set")
    p.add_argument("-o", "--output", required=True, metavar="FILE", help="file to write; its ending gives the format")
    p.add_argument("--reference", metavar="IMAGE", help="image that gives the output grid (default: the fixed image)")
    p.add_argument("--labels", action="store_true", help="INPUT is a label map: nearest-neighbour interpolation")
    p.add_argument(
        "--dicom",
        metavar="FIXED",
        help="write DICOM: INPUT, a folder of a series, as a series into the folder --output, or INPUT, a segmentation "
        "object (SEG) or RT structure set, as the file --output; FIXED is the folder of the fixed image's series",
    )
    p.add_argument(
        "--inverse", action="store_true", help="use the moving -> fixed map: INPUT is a fixed image, or moving points"
    )
    add_series(p)
    p.set_defaults(run=("commands", "warp_command"))


def _add_jacobian(subparsers) -> None:
    p = _command(subparsers, "jacobian", "exact Jacobian determinant of the map on any grid")
    p.add_argument("result", metavar="DIR", help="folder of a registration")
    p.add_argument("-o", "--output", required=True, metavar="FILE", help="image file to write")
    p.add_argument("--reference", metavar="IMAGE", help="image that gives the grid (default: the fixed image)")
    p.add_argument("--mask", metavar="FILE", help="evaluate inside this mask only; 1 is written elsewhere")
    add_series(p)
    p.set_defaults(run=("commands", "jacobian_command"))


def _add_evaluate(subparsers) -> None:
    p = _command(subparsers, "evaluate", "measure a transform of any method: TRE, folds, Dice")
    p.add_argument("transform", metavar="TRANSFORM", help="fixed -> moving transform (.h5, .tfm, displacement image)")
    p.add_argument("--fixed", required=True, metavar="IMAGE", help="the fixed image")
    p.add_argument("--moving", metavar="IMAGE", help="the moving image, needed for Dice and for landmarks in voxels")
    p.add_argument("--inverse", metavar="TRANSFORM", help="moving -> fixed transform, to measure inverse consistency")
    p.add_argument(
        "--alignment",
        metavar="FILE",
        help="linear fixed -> moving transform that the method began with, to report errors before and after",
    )
    add_masks(p)
    add_landmarks(p)
    add_labels(p)
    p.add_argument("-o", "--output", metavar="FILE", help="JSON file (default: standard output)")
    p.add_argument("--landmark-errors", metavar="FILE", help="CSV file to write the error at each landmark to")
    add_series(p)
    p.set_defaults(run=("evaluate", "evaluate_command"))


def _add_structures(subparsers) -> None:
    p = _command(subparsers, "structures", "list an RT structure set, or make a label map of its contours")
    p.add_argument("input", metavar="FILE", help="RT structure set (DICOM)")
    p.add_argument("--reference", metavar="IMAGE", help="image that gives the grid of the label map")
    p.add_argument(
        "--roi",
        action="append",
        default=[],
        metavar="NAME",
        help="contour to write, as label 1; may be repeated for labels 2, 3, ... (default: all)",
    )
    p.add_argument("-o", "--output", metavar="FILE", help="label map to write (default: only list the contours)")
    add_series(p)
    p.set_defaults(run=("structures", "structures_command"))


def _add_lungs(subparsers) -> None:
    p = _command(subparsers, "lungs", "find the lungs of a chest CT, right and left, to be corrected or measured")
    p.add_argument("image", metavar="CT", help="chest CT: a file or a DICOM folder")
    p.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="label map to write: 1 right lung, 2 left lung, 3 lungs not told apart",
    )
    add_series(p)
    p.set_defaults(run=("lungs", "lungs_command"))


def _add_demo(subparsers) -> None:
    p = _command(subparsers, "demo", "register a generated inhale/exhale phantom with a known map")
    p.add_argument(
        "-o",
        "--output",
        default="nephi-demo",
        metavar="DIR",
        help="folder for phantom, result and report (default nephi-demo)",
    )
    p.add_argument("--preset", default="balanced", metavar="NAME", help=PRESET)
    p.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the phantom and the run (default 0)")
    p.add_argument("--device", default="auto", help=DEVICE)
    add_progress(p)
    p.set_defaults(run=("commands", "demo_command"))


def _add_train(subparsers) -> None:
    p = _command(subparsers, "train", "train a model that predicts registrations in one pass")
    p.add_argument(
        "settings", metavar="SETTINGS", nargs="?", help="JSON file with settings of the training (docs/training.md)"
    )
    p.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the model, the log and the cache")
    p.add_argument("--data", metavar="PAIRS", help="list of pairs as for batch, or shapes-solid or shapes-hollow")
    p.add_argument("--validation", metavar="PAIRS", help="list of pairs by which the best model is chosen")
    p.add_argument(
        "--start", metavar="NAME", help="start from the weights of a shipped model, by name, or of a model file"
    )
    p.add_argument(
        "--coarse",
        metavar="NAME",
        help="trained model that serves, unchanged, as the coarse stage of a multi-resolution model",
    )
    p.add_argument("--iterations", type=int, metavar="N", help="training steps (default: of the settings, 10000)")
    p.add_argument("--seed", type=int, metavar="N", help="seed of all random numbers (default: of the settings, 0)")
    p.add_argument("--resume", action="store_true", help="resume the run in DIR")
    add_machine(p)
    p.set_defaults(run=("training", "train_command"))


def _add_breathe(subparsers) -> None:
    p = _command(subparsers, "breathe", "generate pairs with known maps, to train on or to test with")
    p.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="one folder per pair and pairs.csv are written here"
    )
    p.add_argument("--count", type=int, default=100, metavar="N", help="number of pairs (default 100)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the first pair (default 0)")
    p.add_argument(
        "--ct", nargs="*", default=[], metavar="FILE", help="chest CTs to deform (default: procedural chests)"
    )
    p.add_argument("--masks", nargs="*", default=[], metavar="FILE", help="lung masks of these CTs, in the same order")
    p.set_defaults(run=("training", "breathe_command"))


def _add_commission(subparsers) -> None:
    p = _command(subparsers, "commission", "register digital phantoms with known maps here and record the errors")
    p.add_argument("output", metavar="DIR", nargs="?", help="folder for commission.json, commission.html and results")
    p.add_argument(
        "--check", metavar="FILE", help="only say whether this commission.json was changed since it was written"
    )
    p.add_argument("--quick", action="store_true", help="coarser phantoms and the preset fast: two to three minutes")
    p.add_argument("--preset", default=None, metavar="NAME", help=PRESET)
    p.add_argument("--limits", metavar="FILE", help="JSON with a site's own limits of the errors")
    p.add_argument("--tolerances", metavar="FILE", help="JSON with a site's own tolerances of the verdict")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the registrations (default 0)")
    add_machine(p)
    p.set_defaults(run=("commission", "commission_command"))


def _add_app(subparsers) -> None:
    p = _command(subparsers, "app", "the registration panel in a browser")
    p.add_argument(
        "folder",
        nargs="?",
        default=".",
        metavar="FOLDER",
        help="folder whose files can be opened (default: the current one)",
    )
    p.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="NAME",
        help="address to listen at, for other machines to reach it (default 127.0.0.1: this machine alone)",
    )
    p.add_argument("--port", type=int, metavar="N", help="port (default: the first free one from 8650)")
    p.add_argument("--sessions", type=int, default=4, metavar="N", help="sessions at a time, at most (default 4)")
    p.add_argument("--no-browser", action="store_true", help="print the address without opening a browser")
    p.set_defaults(run=("app", "app_command"))


def _add_dirlab(subparsers) -> None:
    p = _command(subparsers, "dirlab", "convert or score DIR-Lab's lung CT (COPDgene, 4DCT) with 300 landmarks")
    p.add_argument("folder", metavar="FOLDER", help="folder with DIR-Lab's files, in folders of any names")
    p.add_argument(
        "--set", required=True, dest="collection", metavar="SET", help="which data set it is: copdgene or 4dct"
    )
    p.add_argument(
        "--cases",
        type=int,
        nargs="+",
        metavar="N",
        help="numbers of the cases (default: all ten, or those with a result)",
    )
    p.add_argument("--fixed", default="exhale", metavar="PHASE", help="the fixed image: exhale (default) or inhale")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--pairs", metavar="OUT", help="write images, landmarks and pairs.csv for 'nephi batch' here")
    what.add_argument("--results", metavar="DIR", help="score DIR/copd1/transform.h5, ...; the table is DIR/dirlab.csv")
    p.set_defaults(run=("dirlab", "dirlab_command"))
