"""What guidance is worth: each kind against the same run without it. Prints one row of a table for each.

    python -m benchmarks.guided [--pairs breathhold_case01 breathhold_case02] [--preset fast] [--phantoms]

- ``landmarks``: every third landmark of a pair is given, from an alignment that is spoilt by 40 mm; errors of those
  that are given and of the others.
- ``lesion``: a ball of soft tissue in the lung of the fixed phantom alone, excluded; its change of volume against the
  true one of its place.
- ``rigid``: two balls in the phantom's lungs; how far each is from its best rigid motion.
- ``volume``: a ball whose volume is kept; its change.
- ``labels``: five slabs of the phantom's lungs; their mean Dice, from images smoothed until little else is seen.
- ``initial``: the phantom's true map, spoilt by a wave of 8 mm, refined; error at the landmarks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace

import nephi
import numpy as np
import SimpleITK as sitk
import torch
from nephi import Guidance
from nephi.fitting.guidance import bodies_lps_mm
from nephi.measure.quality import dice, random_points, tre_mm
from nephi.settings import Settings
from nephi.space.grid import Grid
from nephi.space.rigid import rigidly_moved
from nephi.synthetic.phantom import Phantom

from .pairs import PAIRS, data_folder, read_landmarks

SPOILT_MM, WAVE_MM, RADIUS_MM = 40.0, 8.0, 20.0
SD_MM = 1.0


def landmarks(name: str, settings: Settings) -> Iterator[str]:
    """A pair from a spoilt alignment, without masks, alone and with every third landmark."""
    files, folder = PAIRS[name], data_folder()
    fixed, moving = (nephi.read_image(folder / path) for path in (files.fixed, files.moving))
    a, b = (read_landmarks(folder / path) for path in (files.fixed_landmarks, files.moving_landmarks))
    given = np.arange(len(a)) % 3 == 0
    middle = [Grid.of(image).to_lps_mm((np.array(image.GetSize()) - 1) / 2) for image in (fixed, moving)]
    spoilt = sitk.TranslationTransform(3, (middle[1] - middle[0] + [0, SPOILT_MM, 0]).tolist())
    settings = replace(settings, guidance=replace(settings.guidance, landmarks_sd_mm=SD_MM))
    for guidance in (Guidance(initial=spoilt), Guidance((a[given], b[given]), initial=spoilt)):
        started = time.process_time()
        result = nephi.register(fixed, moving, settings=settings, guidance=guidance, auto_mask=False)
        error, seconds = tre_mm(result.forward(a), b), time.process_time() - started
        folds = int((result.jacobian_determinant(random_points(Grid.of(fixed), None, 20_000)) <= 0).sum())
        near = f"within {SD_MM:g} mm {100 * (error[given] <= SD_MM).mean():.0f} %"
        yield (
            f"| landmarks, {name} | {'guided' if guidance.landmarks_lps_mm else 'alone'} | given "
            f"{error[given].mean():.2f} mm (max {error[given].max():.2f}, {near}), others "
            f"{error[~given].mean():.2f} mm (max {error[~given].max():.2f}), {folds} of "
            f"20,000 points folded | {seconds:.0f} |"
        )


def phantom_rows(settings: Settings) -> Iterator[str]:
    p = nephi.make_phantom()
    centre = _deepest(p)
    ball = _ball(p.fixed, centre)
    a, b = p.fixed_landmarks_lps_mm, p.moving_landmarks_lps_mm
    far = tre_mm(a, np.broadcast_to(centre, a.shape)) > 2 * RADIUS_MM
    inside = random_points(Grid.of(p.fixed), ball, 2000)
    true_change = 100 * (p.jacobian(inside).mean() - 1)

    def run(guidance: Guidance, **images) -> tuple[nephi.Registration, str]:
        started = time.process_time()
        given = {"fixed": p.fixed, "moving": p.moving} | images
        result = nephi.register(
            **given, fixed_mask=p.fixed_mask, moving_mask=p.moving_mask, settings=settings, guidance=guidance
        )
        return result, f"| {time.process_time() - started:.0f} |"

    def change(result: nephi.Registration) -> float:
        return 100 * (float(result.jacobian_determinant(inside).mean()) - 1)

    def elsewhere(result: nephi.Registration) -> str:
        return f"landmarks elsewhere {tre_mm(result.forward(a), b)[far].mean():.2f} mm"

    with_lesion = sitk.GetArrayFromImage(p.fixed)
    with_lesion[sitk.GetArrayViewFromImage(ball) != 0] = 40
    for name, guidance in (("alone", Guidance()), ("guided", Guidance(excluded=(ball, None)))):
        result, seconds = run(guidance, fixed=Grid.of(p.fixed).image(with_lesion))
        text = f"volume {change(result):+.1f} % (true {true_change:+.1f} %), {elsewhere(result)}"
        yield f"| lesion | {name} | {text} {seconds}"
    bodies = sitk.Cast(ball + _ball(p.fixed, _deepest(p, other_side_of=centre)) > 0, sitk.sitkUInt8)
    for name, guidance in (("alone", Guidance()), ("guided", Guidance(rigid=bodies))):
        result, seconds = run(guidance)
        apart = ", ".join(f"{_from_rigid_mm(result, points).max():.2f}" for _, points in bodies_lps_mm(bodies))
        yield f"| rigid | {name} | at most {apart} mm from rigid, {elsewhere(result)} {seconds}"
    result, seconds = run(Guidance(volume_kept=ball))
    yield f"| volume | guided | volume {change(result):+.1f} %, {elsewhere(result)} {seconds}"
    labels = _slabs(p)
    smooth = {role: sitk.DiscreteGaussian(getattr(p, role), 100.0, 64) for role in ("fixed", "moving")}
    for name, guidance in (("alone", Guidance()), ("guided", Guidance(labels=labels))):
        result, seconds = run(guidance, **smooth)
        warped, fixed = (sitk.GetArrayFromImage(x) for x in (result.warp(labels[1], labels=True), labels[0]))
        overlap = np.mean([dice(warped == n, fixed == n) for n in range(1, 6)])
        error = tre_mm(result.forward(a), b).mean()
        yield f"| labels | {name} | mean Dice {overlap:.3f}, landmarks {error:.2f} mm {seconds}"
    for iterations in (0, settings.fit.iterations):
        started = time.process_time()
        changed = replace(settings, fit=replace(settings.fit, iterations=iterations))
        result = nephi.register(
            p.fixed, p.moving, fixed_mask=p.fixed_mask, moving_mask=p.moving_mask, settings=changed,
            guidance=Guidance(initial=_spoilt(p)),
        )  # fmt: skip
        error = tre_mm(result.forward(a), b).mean()
        yield f"| initial | {iterations} steps | landmarks {error:.2f} mm | {time.process_time() - started:.0f} |"


def _deepest(p: Phantom, other_side_of: np.ndarray | None = None) -> np.ndarray:
    """The place in the lungs that is farthest from their border, in LPS mm."""
    distance = sitk.SignedMaurerDistanceMap(p.fixed_mask, insideIsPositive=True, useImageSpacing=True)
    depth, grid = sitk.GetArrayFromImage(distance).reshape(-1), Grid.of(p.fixed)
    points = grid.slab_lps_mm(0, grid.shape[0])
    if other_side_of is not None:
        depth[np.abs(points[:, 0] - other_side_of[0]) < 60] = -1
    return points[depth.argmax()]


def _ball(image: sitk.Image, centre_lps_mm: np.ndarray) -> sitk.Image:
    grid = Grid.of(image)
    near = tre_mm(grid.slab_lps_mm(0, grid.shape[0]), np.broadcast_to(centre_lps_mm, (np.prod(grid.size), 3)))
    return grid.image((near <= RADIUS_MM).reshape(grid.shape).astype(np.uint8))


def _from_rigid_mm(result: nephi.Registration, points: np.ndarray) -> np.ndarray:
    ends = result.forward(points)
    return tre_mm(rigidly_moved(torch.from_numpy(points)[None], torch.from_numpy(ends)[None])[0].numpy(), ends)


def _slabs(p: Phantom) -> tuple[sitk.Image, sitk.Image]:
    """The lungs, cut into five slabs from the feet to the head, in both images."""
    fixed, moving = Grid.of(p.fixed), Grid.of(p.moving)
    heights = fixed.slab_lps_mm(0, fixed.shape[0])[:, -1]
    inside = sitk.GetArrayFromImage(p.fixed_mask).reshape(-1) != 0
    ends = np.quantile(heights[inside], [0.2, 0.4, 0.6, 0.8])
    back = p.inverse(moving.slab_lps_mm(0, moving.shape[0]))[:, -1]
    inside_moving = sitk.GetArrayFromImage(p.moving_mask).reshape(-1) != 0
    both = ((fixed, inside, heights), (moving, inside_moving, back))
    one, other = (
        grid.image((where * (1 + np.searchsorted(ends, along))).astype(np.uint8).reshape(grid.shape))
        for grid, where, along in both
    )
    return one, other


def _spoilt(p: Phantom) -> sitk.Transform:
    grid = Grid.of(p.fixed)
    points = grid.slab_lps_mm(0, grid.shape[0])
    moved = p.forward(points) - points + WAVE_MM * np.sin(points[:, ::-1] / 40)
    return sitk.DisplacementFieldTransform(grid.image(moved.reshape(*grid.shape, 3), vector=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="*", default=["breathhold_case01", "breathhold_case02"], choices=list(PAIRS))
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--phantoms", action="store_true")
    options = parser.parse_args()
    settings = nephi.PRESETS[options.preset]
    print("| what | how | result | CPU s |\n|---|---|---|---:|")
    if options.phantoms:
        for row in phantom_rows(settings):
            print(row, flush=True)
    for name in options.pairs:
        for row in landmarks(name, settings):
            print(row, flush=True)


if __name__ == "__main__":
    main()
