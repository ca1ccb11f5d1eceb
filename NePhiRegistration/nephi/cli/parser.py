"""The commands of ``nephi`` and their arguments."""

from __future__ import annotations

import argparse
from typing import NoReturn

from ..files.cases import ROLES
from ..version import __version__
from .arguments import (
    FORMATS,
    add_device,
    add_guides,
    add_how,
    add_iterations,
    add_labels,
    add_landmarks,
    add_machine,
    add_masks,
    add_optional_output,
    add_output,
    add_preset,
    add_progress,
    add_reference,
    add_repeatable,
    add_seed,
    add_series,
    add_tolerances,
)


class _Parser(argparse.ArgumentParser):
    """argparse's parser, which reports a wrong argument in one line, like all other errors."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"nephi: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args=None, namespace=None):
        """Each command reports the arguments unknown to it, so that the message names its own help."""
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
    add_output(p, "DIR", "folder for transforms, images and report")
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
        help="write the displacement so far to DIR/preview.nrrd at this interval during the run",
    )
    add_progress(p)
    p.set_defaults(run=("commands", "register_command"))


def _add_batch(subparsers) -> None:
    p = _command(subparsers, "batch", "register a list of pairs; resumes an interrupted batch")
    p.add_argument("pairs", metavar="PAIRS", help=f"CSV file with the columns name, {', '.join(ROLES)}")
    add_output(p, "DIR", "one folder per pair and summary.csv are written here")
    p.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="number of pairs registered at the same time (default 1)"
    )
    p.add_argument(
        "--shard",
        metavar="I/N",
        help="register only the I-th of N parts of the list; other parts may run at the same time",
    )
    add_how(p)
    _add_engine(p)
    p.set_defaults(run=("cohort", "batch_command"))


def _add_engine(p: argparse.ArgumentParser) -> None:
    """Options of a batch that runs on a cluster."""
    p.add_argument(
        "--engine",
        choices=("local", "slurm", "processes"),
        default="local",
        help="where the pairs are registered: by this process (local, the default), by SLURM jobs, or by the same jobs "
        "as processes on this machine, to test them",
    )
    p.add_argument(
        "--cluster", metavar="FILE", help="JSON file with settings of the SLURM jobs; the options below override it"
    )
    p.add_argument("--partition", metavar="NAME", help="SLURM partition (default: the cluster's own)")
    p.add_argument(
        "--time",
        type=int,
        metavar="MINUTES",
        help="time limit of a job, which is requeued when it reaches the limit (default 240)",
    )
    p.add_argument("--memory", type=float, metavar="GB", help="memory of a job (default 8)")
    p.add_argument("--gpus", type=int, metavar="N", help="GPUs of a job (default 0)")
    p.add_argument("--array", type=int, metavar="N", help="maximum number of jobs (default 100)")


def _add_convert(subparsers) -> None:
    p = _command(subparsers, "convert", "write a transform in the format of another program")
    p.add_argument(
        "transform",
        nargs="+",
        metavar="TRANSFORM",
        help="folder of a registration, or fixed -> moving transforms in the order in which they are applied to points",
    )
    p.add_argument("--to", required=True, choices=(*FORMATS, "dicom"), help="the format")
    add_output(p, "NAME", "folder and beginning of the file names to write")
    add_reference(p, "image that defines the grid of the field; for dicom the folder of the fixed series")
    p.add_argument("--moving", metavar="IMAGE", help="the moving image, for fsl; for dicom the folder of its series")
    p.add_argument(
        "--error",
        type=float,
        metavar="MM",
        help="for the folder of a registration: allow a coarser grid with at most this error",
    )
    add_series(p)
    p.set_defaults(run=("convert", "convert_command"))


def _add_summarise(subparsers) -> None:
    p = _command(subparsers, "summarise", "write the table of a batch from the folders of its pairs")
    p.add_argument("folder", metavar="DIR", help="folder that contains the folders of the pairs")
    p.add_argument(
        "--pairs",
        metavar="PAIRS",
        help="list of pairs, which gives the order and shows which are missing (default: the folders found)",
    )
    p.set_defaults(run=("summarise", "summarise_command"))


def _add_devices(subparsers) -> None:
    p = _command(subparsers, "devices", "list the available devices as JSON")
    p.set_defaults(run=("commands", "devices_command"))


def _add_warp(subparsers) -> None:
    p = _command(subparsers, "warp", "apply a registration to an image, a label map or points")
    p.add_argument("result", metavar="DIR", help="folder of a registration, or a fixed -> moving transform file")
    p.add_argument("input", metavar="INPUT", help="moving image, label map, landmark file or structure set")
    add_output(p, "FILE", "file to write; its extension gives the format")
    add_reference(p, "image that defines the output grid (default: the fixed image)")
    p.add_argument("--labels", action="store_true", help="INPUT is a label map: nearest-neighbour interpolation")
    p.add_argument(
        "--dicom",
        metavar="FIXED",
        help="write DICOM; FIXED is the folder of the fixed image's series. The folder of a series (INPUT) becomes a "
        "series in the folder --output; a segmentation object (SEG) or RT structure set becomes the file --output",
    )
    p.add_argument(
        "--inverse", action="store_true", help="use the moving -> fixed map: INPUT is a fixed image, or moving points"
    )
    add_series(p)
    p.set_defaults(run=("commands", "warp_command"))


def _add_jacobian(subparsers) -> None:
    p = _command(subparsers, "jacobian", "exact Jacobian determinant of the map on any grid")
    p.add_argument("result", metavar="DIR", help="folder of a registration")
    add_output(p, "FILE", "image file to write")
    add_reference(p, "image that defines the grid (default: the fixed image)")
    p.add_argument("--mask", metavar="FILE", help="evaluate only inside this mask; 1 is written elsewhere")
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
        help="linear fixed -> moving transform that the method started from, to report errors before and after",
    )
    add_masks(p)
    add_landmarks(p)
    add_labels(p)
    add_optional_output(p, "JSON file (default: standard output)")
    p.add_argument("--landmark-errors", metavar="FILE", help="CSV file for the error at each landmark")
    add_series(p)
    p.set_defaults(run=("evaluate", "evaluate_command"))


def _add_structures(subparsers) -> None:
    p = _command(subparsers, "structures", "list the contours of an RT structure set, or convert them to a label map")
    p.add_argument("input", metavar="FILE", help="RT structure set (DICOM)")
    add_reference(p, "image that defines the grid of the label map")
    add_repeatable(
        p, "--roi", "NAME", "contour to write, as label 1; may be repeated for labels 2, 3, ... (default: all)"
    )
    add_optional_output(p, "label map to write (default: only list the contours)")
    add_series(p)
    p.set_defaults(run=("structures", "structures_command"))


def _add_lungs(subparsers) -> None:
    p = _command(subparsers, "lungs", "segment the right and the left lung of a chest CT, to correct or measure them")
    p.add_argument("image", metavar="CT", help="chest CT: a file or a DICOM folder")
    add_output(p, "FILE", "label map to write: 1 right lung, 2 left lung, 3 both where they cannot be separated")
    add_series(p)
    p.set_defaults(run=("lungs", "lungs_command"))


def _add_demo(subparsers) -> None:
    p = _command(subparsers, "demo", "register a generated inhale/exhale phantom with a known map")
    add_output(p, "DIR", "folder for phantom, result and report (default nephi-demo)", default="nephi-demo")
    add_preset(p, default="balanced")
    add_seed(p, "seed of the phantom and the run (default 0)")
    add_device(p)
    add_progress(p)
    p.set_defaults(run=("commands", "demo_command"))


def _add_train(subparsers) -> None:
    p = _command(subparsers, "train", "train a model that predicts registrations in one pass")
    p.add_argument(
        "settings", metavar="SETTINGS", nargs="?", help="JSON file with settings of the training (docs/training.md)"
    )
    add_output(p, "DIR", "folder for the model, the log and the cache")
    p.add_argument("--data", metavar="PAIRS", help="list of pairs as for batch, or shapes-solid or shapes-hollow")
    p.add_argument("--validation", metavar="PAIRS", help="list of pairs used to choose the best model")
    p.add_argument(
        "--start", metavar="NAME", help="start from the weights of a shipped model, by name, or of a model file"
    )
    p.add_argument(
        "--coarse",
        metavar="NAME",
        help="trained model that serves, unchanged, as the coarse stage of a multi-resolution model",
    )
    add_iterations(p, "training steps (default: of the settings, 10000)")
    add_seed(p, "seed of all random numbers (default: of the settings, 0)", default=None)
    p.add_argument("--resume", action="store_true", help="resume the run in DIR")
    add_machine(p)
    p.set_defaults(run=("training", "train_command"))


def _add_breathe(subparsers) -> None:
    p = _command(subparsers, "breathe", "generate pairs with known maps, for training and testing")
    add_output(p, "DIR", "one folder per pair and pairs.csv are written here")
    p.add_argument("--count", type=int, default=100, metavar="N", help="number of pairs (default 100)")
    add_seed(p, "seed of the first pair (default 0)")
    p.add_argument(
        "--ct", nargs="*", default=[], metavar="FILE", help="chest CTs to deform (default: procedural chests)"
    )
    p.add_argument("--masks", nargs="*", default=[], metavar="FILE", help="lung masks of these CTs, in the same order")
    p.set_defaults(run=("training", "breathe_command"))


def _add_commission(subparsers) -> None:
    p = _command(subparsers, "commission", "register phantoms with known maps on this machine and record the errors")
    p.add_argument("output", metavar="DIR", nargs="?", help="folder for commission.json, commission.html and results")
    p.add_argument(
        "--check", metavar="FILE", help="only check whether this commission.json was changed since it was written"
    )
    p.add_argument(
        "--quick", action="store_true", help="use coarser phantoms and the preset fast: two to three minutes"
    )
    add_preset(p)
    p.add_argument("--limits", metavar="FILE", help="JSON file with the site's own limits for the errors")
    add_tolerances(p)
    add_seed(p, "seed of the registrations (default 0)")
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
        help="address to listen on, if other machines are to reach it (default 127.0.0.1: only this machine)",
    )
    p.add_argument("--port", type=int, metavar="N", help="port (default: the first free one from 8650)")
    p.add_argument(
        "--sessions", type=int, default=4, metavar="N", help="maximum number of sessions at the same time (default 4)"
    )
    p.add_argument("--no-browser", action="store_true", help="print the address without opening a browser")
    p.set_defaults(run=("app", "app_command"))


def _add_dirlab(subparsers) -> None:
    p = _command(subparsers, "dirlab", "convert or score DIR-Lab's lung CT (COPDgene, 4DCT) with 300 landmarks")
    p.add_argument("folder", metavar="FOLDER", help="folder with DIR-Lab's files, in subfolders of any names")
    p.add_argument("--set", required=True, dest="collection", metavar="SET", help="the data set: copdgene or 4dct")
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
