"""Pictures for the README from a real registration: ``python Testing/slicer/screenshots.py [--result DIR]``.

The pair is lung_ct_followup in the folder NEPHI_DATA. Views are drawn by Slicer's displayable managers without its
window, the panel by a stand-in for Slicer's widgets. ``--result`` keeps the registration there; where it is kept
already, it is not run again and the picture of the live preview stays as it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "NePhiRegistration"))

import numpy as np
import SimpleITK as sitk
from helpers import markups_node, volume_node
from NePhiRegistrationLib import display, maps
from NePhiRegistrationLib.job import Job
from NePhiRegistrationLib.logic import Logic
from NePhiRegistrationLib.outputs import Outputs
from NePhiRegistrationLib.surface import surface_model
from views import Scene, SliceView, ThreeDView, write_png

PICTURES = Path(__file__).parents[2] / "Resources" / "Screenshots"
HEIGHT = 440  # pixels of a view
ORIENTATIONS = {"Axial": (0, 1), "Coronal": (0, 2), "Sagittal": (1, 2)}  # axes across and down, right-left first
GAP = 6
MARGIN_MM = 20.0  # around the volume in 3D, where the grid bulges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("NEPHI_DATA"), help="folder of the real pairs")
    parser.add_argument("--result", type=Path, help="folder that keeps the registration, or has kept it")
    parser.add_argument("--preset", default="balanced")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data or set NEPHI_DATA")
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        result = options.result or Path(scratch)
        draw_views(options.data, result, options.preset)
        panel = Path(__file__).parents[1] / "gui" / "screenshot.py"
        subprocess.run([sys.executable, panel, "--data", options.data, "--result", result], check=True)


def draw_views(data: Path, result: Path, preset: str) -> None:
    views = Scene()
    job = make_job(views.mrml, data / "lung_ct_followup", preset)
    slices = [SliceView(views, name, (width_of(job.fixed, name), HEIGHT)) for name in ORIENTATIONS]
    _axial, coronal, sagittal = slices
    display.show_comparison(job.fixed, job.moving, "fade")
    for view in slices:
        view.fit()
        view.node.JumpSliceByOffsetting(*lung_point(job.fixed_mask))

    def picture(name: str, *rows: list[np.ndarray]) -> None:
        write_png(joined([joined(pictures, 1) for pictures in rows], 0), PICTURES / f"{name}.png")

    def now() -> list[np.ndarray]:
        return [view.pixels() for view in slices]

    before = now()
    outputs = registered(views.mrml, job, result, slices)
    fixed, warped = outputs.fixed, outputs.warped
    display.show_comparison(fixed, warped, "fade")
    picture("before_after", before, now())
    for kind, shown in (("checkerboard", (coronal, sagittal)), ("difference", (coronal, sagittal))):
        pictures = []
        for other in (job.moving, warped):
            display.show_comparison(fixed, other, kind, squares_mm=30.0)
            pictures.append([view.pixels() for view in shown])
        picture(kind, [pixels for pair in zip(*pictures, strict=True) for pixels in pair])
    display.show_comparison(fixed, warped, "")
    display.show_jacobian(outputs, True, 0.6)
    picture("jacobian", now())
    display.show_jacobian(outputs, False)
    maps.show_fields_disagreement(outputs, True, 0.6)
    picture("fields_disagreement", now())
    maps.show_fields_disagreement(outputs, False)
    maps.show_error(outputs, True, 0.6)
    picture("expected_error", now())
    maps.show_error(outputs, False)
    grids(views, outputs, coronal, job.fixed_mask)


def width_of(volume, orientation: str) -> int:
    """Pixels across for a view that the volume fills."""
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    across, down = (bounds[2 * axis + 1] - bounds[2 * axis] for axis in ORIENTATIONS[orientation])
    return round(HEIGHT * across / down)


def grids(views: Scene, outputs: Outputs, coronal: SliceView, mask) -> None:
    """The same slice with grid, arrows and contours, and the grid around the lung in 3D."""
    forward, fixed = outputs.forward, outputs.fixed
    pictures = []
    for mode in display.GRID_MODES:
        display.show_grid(forward, fixed, True, mode, 10.0)
        pictures.append(coronal.pixels())
    inside = display.slicer.util.arrayFromVolume(mask) != 0
    surface_model(views.mrml, inside, display.nodes.ijk_to_world(mask), "lung")
    view, bounds = ThreeDView(views, (HEIGHT, HEIGHT)), [0.0] * 6
    display.show_grid(forward, fixed, True, "grid", 30.0, in_2d=False, in_3d=True)
    fixed.GetRASBounds(bounds)
    view.look_at([bound + MARGIN_MM * (1 if i % 2 else -1) for i, bound in enumerate(bounds)])
    write_png(joined([*pictures, view.pixels()], 1), PICTURES / "grid.png")
    display.show_grid(forward, fixed, False)


def make_job(scene, folder: Path, preset: str) -> Job:
    """The baseline scan is fixed, the follow-up moves; masks and landmarks of both."""
    nodes = {}
    for role, name in (("fixed", "baseline"), ("moving", "followup")):
        volume = volume_node(scene, sitk.ReadImage(str(folder / f"{name}.mha")), name)
        volume.CreateDefaultDisplayNodes()
        volume.GetDisplayNode().SetAutoWindowLevel(False)
        volume.GetDisplayNode().SetWindowLevel(1400, -500)
        mask = sitk.Cast(sitk.ReadImage(str(folder / f"{name}_mask.mha")) != 0, sitk.sitkUInt8)
        points_lps_mm = np.loadtxt(folder / f"{name}_landmarks_lps_mm.csv", delimiter=",", skiprows=1)
        landmarks = markups_node(scene, points_lps_mm * (-1, -1, 1), f"{name} landmarks")
        nodes |= {
            role: volume,
            f"{role}_mask": volume_node(scene, mask, f"{name} lung", "vtkMRMLLabelMapVolumeNode"),
            f"{role}_landmarks": landmarks,
        }
    return Job(**nodes, preset=preset)


def registered(scene, job: Job, folder: Path, slices: list[SliceView]) -> Outputs:
    """The registration, with a picture of the live preview taken as soon as the alignment and later fields show."""
    if (folder / "report.json").is_file():
        forward = scene.AddNewNodeByClass("vtkMRMLGridTransformNode")
        return Outputs.read(folder, forward, job.fixed, job.moving)
    run = Logic(scene).start(job)
    frames, wanted = [slices[1].pixels()], [0.08, 0.3]  # before; aligned; under way
    while run.poll():
        if run.stage == "optimising" and wanted and run.fraction >= wanted[0]:
            run.show_live(True)
            frames.append(slices[1].pixels())
            run.show_live(False)
            wanted.pop(0)
        time.sleep(0.2)
    if run.state != "done":
        raise SystemExit(run.error)
    display.show_comparison(job.fixed, run.outputs.warped, "fade")
    write_png(joined([*frames, slices[1].pixels()], 1), PICTURES / "live_preview.png")
    shutil.copytree(run.outputs.folder, folder, dirs_exist_ok=True)
    return run.outputs


def lung_point(mask) -> np.ndarray:
    """The middle of the lung in RAS mm."""
    index_zyx = np.argwhere(display.slicer.util.arrayFromVolume(mask)).mean(0)
    return (display.nodes.ijk_to_world(mask) @ [*index_zyx[::-1], 1.0])[:3]


def joined(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    """Pictures below (0) or beside (1) each other, with white between them."""
    shape = list(pictures[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap, picture)][1:], axis)


if __name__ == "__main__":
    main()
