"""What sliding is worth: the phantom whose lungs slide along the chest wall, without and with ``Settings.sliding``.

    python -m benchmarks.sliding [--preset fast] [--phantoms 3 4] [--dimension 2] [--rigid]

``--rigid``: also with the ribs around the lungs as bodies that are kept rigid. Errors in mm against the true map, mean
(95th percentile): in the lungs within 10 mm of their border, in the chest wall within 10 mm of the lungs, at all points
within 10 mm of the border, at the ribs, at forks of vessels. ``apart``: how far the two sides of the border part or
overlap, at most. Folds at the points near the border. ``from rigid``: how far a voxel of a rib is, at most, from where
the rib's best rigid motion takes it (and how many of them are farther than 0.2 mm). What the results warn of follows.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import nephi
import numpy as np
import SimpleITK as sitk
import torch
from nephi.fitting.guidance import bodies_lps_mm
from nephi.maps.sliding import Sliding
from nephi.settings import PRESETS
from nephi.space.grid import Grid
from nephi.space.rigid import rigidly_moved
from nephi.synthetic.phantom import Phantom, make_phantom

NEAR_MM, RIBS_MM, RIGID_MM, POINTS = 10.0, 25.0, 0.2, 4000
COLUMNS = (
    "lungs near the border",
    "wall near the lungs",
    "all near the border",
    "ribs",
    "vessels",
    "apart",
    "folds",
    "from rigid",
)


def places(phantom: Phantom) -> dict[str, np.ndarray]:
    """Points (n, d) in LPS mm of the fixed image by where they lie, at most 4,000 of each."""
    grid, rng = Grid.of(phantom.fixed), np.random.default_rng(0)
    distance = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(phantom.fixed_mask, False, False, True))
    bone = sitk.GetArrayViewFromImage(phantom.fixed) > 150
    within = phantom.motion.within(grid.slab_lps_mm(0, grid.shape[0])).reshape(grid.shape)
    near = (np.abs(distance) > 1) & (np.abs(distance) < NEAR_MM)
    wanted = {
        COLUMNS[0]: near & (distance < 0),
        COLUMNS[1]: near & (distance > 0) & ~within,
        COLUMNS[2]: near,
        COLUMNS[3]: bone & ~within & (distance > 0) & (distance < RIBS_MM),
    }
    chosen = {}
    for name, where in wanted.items():
        index_zyx = np.argwhere(where)
        chosen[name] = grid.to_lps_mm(index_zyx[rng.permutation(len(index_zyx))[:POINTS], ::-1])
    return {**chosen, COLUMNS[4]: phantom.fixed_landmarks_lps_mm}


def ribs(phantom: Phantom) -> sitk.Image:
    """Label map of the ribs around the lungs."""
    grid = Grid.of(phantom.fixed)
    distance = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(phantom.fixed_mask, False, False, True))
    within = phantom.motion.within(grid.slab_lps_mm(0, grid.shape[0])).reshape(grid.shape)
    bone = sitk.GetArrayViewFromImage(phantom.fixed) > 150
    return grid.image((bone & ~within & (distance > 0) & (distance < RIBS_MM)).astype(np.uint8))


def from_rigid_mm(result: nephi.Registration, labels: sitk.Image) -> np.ndarray:
    """How far each voxel of the bodies of a label map is from its body's rigid motion."""
    found = []
    for _, voxels_lps_mm in bodies_lps_mm(labels):
        start, end = (torch.tensor(points)[None] for points in (voxels_lps_mm, result.forward(voxels_lps_mm)))
        found.append((rigidly_moved(start, end) - end).norm(dim=-1)[0].numpy())
    return np.concatenate(found)


def apart_mm(result: nephi.Registration, points_lps_mm: np.ndarray) -> float:
    """How far, at most, the map within takes points of the border beside where the one around takes it; 0 without."""
    maps, unit_mm = result.maps, result.cube.unit_mm
    if not isinstance(maps, Sliding):
        return 0.0
    points = maps.border.brought(torch.tensor(result.cube.to_cube(points_lps_mm), dtype=torch.float32))
    on_it = points[maps.border.at(points)[0][:, 0].abs() < 0.01 / unit_mm]
    return float(maps.between(on_it).abs().max()) * unit_mm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--phantoms", nargs="+", type=int, default=[3], help="their seeds")
    parser.add_argument("--dimension", type=int, choices=(2, 3), default=3, help="of the phantoms")
    parser.add_argument("--rigid", action="store_true", help="also with ribs that are kept rigid")
    options, warnings = parser.parse_args(), []
    print(f"| phantom | sliding | {' | '.join(COLUMNS)} | CPU s |\n|---|---|{'---:|' * (len(COLUMNS) + 1)}")
    for seed in options.phantoms:
        phantom = make_phantom(dimension=options.dimension, seed=seed, sliding=True)
        where = places(phantom)
        truth = {name: phantom.forward(points) for name, points in where.items()}
        labels = ribs(phantom)
        ways = {"no": (False, None), "yes": (True, None)}
        if options.rigid:
            ways["yes, ribs rigid"] = (True, nephi.Guidance(rigid=labels))
        for name_of_way, (sliding, guidance) in ways.items():
            started = time.process_time()
            result = nephi.register(
                phantom.fixed,
                phantom.moving,
                fixed_mask=phantom.fixed_mask,
                moving_mask=phantom.moving_mask,
                settings=replace(PRESETS[options.preset], sliding=sliding),
                guidance=guidance,
            )
            seconds, cells = time.process_time() - started, []
            warnings += [f"{seed}, {name_of_way}: {note}" for note in result.notes]
            for name, points in where.items():
                error = np.linalg.norm(result.forward(points) - truth[name], axis=1)
                cells.append(f"{error.mean():.2f} ({np.percentile(error, 95):.2f})")
            border = where[COLUMNS[2]]
            folds = int((result.jacobian_determinant(border) <= 0).sum())
            off_mm = from_rigid_mm(result, labels)
            bent = f"{off_mm.max():.2f} ({(off_mm > RIGID_MM).sum()} of {len(off_mm)})"
            cells += [f"{apart_mm(result, border):.2f}", str(folds), bent]
            print(f"| {seed} | {name_of_way} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)
    print("", *warnings, sep="\n")


if __name__ == "__main__":
    main()
