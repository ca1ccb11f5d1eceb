"""Synthetic training pairs with exactly known maps: a real or procedural chest CT deformed by random breathing.

One state of the chest, the *base*, is the CT after a slight random warp. The other is the base seen through a
*breath* phi, ``image(y) = base(phi(y))``, so that y -> phi(y) are corresponding points by construction. phi is a
cubic B-spline and a rigid motion, evaluated by the same formula at the voxels and at any point that is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import SimpleITK as sitk
import torch
from torch.nn.functional import grid_sample, max_pool3d

from ..errors import NephiError
from ..files.cases import ROLES
from ..files.image import check_image, write_image
from ..files.landmarks import write_landmarks
from ..files.masks import check_mask
from ..files.writing import output_folder, replaced, write_csv, write_text
from ..images.masks import lung_mask, signed_distance_mm
from ..limits import AtLeast, AtMost, Count, NotNegative, Seed, Share, check_limits, check_value
from ..space.grid import Grid
from .bspline import Breath, Spline, box_grid
from .chest import procedural

_KNOTS_MM = 8.0  # between the control points of a breath
_LEAST_JACOBIAN = 0.2  # at the checked points, so that it stays above 0.15 between them
_COARSE_MM = 6.0  # for finding where the lungs are
_AROUND_MM = 10.0  # of the lungs: where correspondences are written down
_POINTS = 4000  # as many of them
_REACH_MM = 80.0  # around the lungs of the base, which contains those of the deformed image
_IMAGES = ROLES[:4]
_PAIRS = "pairs.csv"
_WRITTEN = (*ROLES[:6], "fixed_points", "moving_points")
_Spacing = Annotated[float, AtLeast(0.25), AtMost(100)]
_Length = Annotated[float, AtLeast(0), AtMost(1000)]
_Knots = Annotated[float, AtLeast(1), AtMost(1000)]
_Angle = Annotated[float, AtLeast(0), AtMost(180)]
_Scale = Annotated[float, AtLeast(0.1), AtMost(10)]


@dataclass(frozen=True)
class BreathingSettings:
    """What a pair is drawn from: (low, high) are the ends of a uniform range, a single number a limit or a share."""

    spacing_mm: _Spacing | tuple[_Spacing, _Spacing, _Spacing] = 2.5  # of both images, alike or along x, y, z
    tidal: Share = 0.2  # share of pairs in quiet breathing
    still: Share = 0.2  # share of pairs without breathing, as from two visits; the rest are breath-holds
    breath_hold_mm: tuple[_Length, _Length] = (10.0, 48.0)  # motion of the diaphragm between two breath-holds
    tidal_mm: tuple[_Length, _Length] = (5.0, 18.0)  # motion of the diaphragm in quiet breathing
    wall_mm: tuple[_Length, _Length] = (0.0, 15.0)  # motion of the chest wall, to the front and to either side
    pitch_deg: _Angle = 6.0  # the chest rises more than the belly, or less
    lift_mm: _Length = 10.0  # and all of it off the table
    # random splines: the distance between their knots, and the range of their root mean square displacement
    smooth_mm: tuple[tuple[_Knots, _Length, _Length], ...] = ((90, 1, 5), (50, 0.3, 2.2), (30, 0, 1))
    offset_mm: _Length = 40.0  # of the scanner's origin, along each axis
    rotation_deg: _Angle = 4.0  # of the patient, about each axis
    scale: tuple[_Scale, _Scale] = (0.8, 1.2)  # of the base, along each axis
    warp_mm: _Length = 5.0  # of the base
    noise_hu: tuple[NotNegative, NotNegative] = (10.0, 60.0)  # standard deviation
    one_lung: Share = 0.15  # share of pairs cropped to one lung
    cut: Share = 0.25  # share of images that end above the base of the lungs, or below the apex

    def contradiction(self) -> str:
        ranges = {name: getattr(self, name) for name in ("breath_hold_mm", "tidal_mm", "wall_mm", "scale", "noise_hu")}
        ranges |= {f"smooth_mm[{i}][1:]": one[1:] for i, one in enumerate(self.smooth_mm)}
        for name, (low, high) in ranges.items():
            if low > high:
                return f"{name} is {(low, high)}, must be (low, high) with low <= high"
        share = self.tidal + self.still
        return f"tidal and still are {share:g} together, must be at most 1" if share > 1 else ""


@dataclass(frozen=True)
class BreathingPair:
    """Two CTs of one chest (int16, HU), their lungs (uint8), and the exact map between them."""

    fixed: sitk.Image
    moving: sitk.Image
    fixed_mask: sitk.Image
    moving_mask: sitk.Image
    landmarks: tuple[np.ndarray, np.ndarray]  # fixed_lps_mm and moving_lps_mm (n, 3), on vessels in both lungs
    breath: Breath
    base_is_fixed: bool
    about: dict = field(default_factory=dict)  # seed, settings and random parameters

    def forward(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """(n, 3) points of the fixed image -> moving image; exact, or to 1e-5 mm where the base is fixed.

        Raises NephiError where it can't be inverted, far from the images.
        """
        return (self.breath.inverse if self.base_is_fixed else self.breath.forward)(points_lps_mm)

    def inverse(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """(n, 3) points of the moving image -> the same tissue in the fixed image, exactly."""
        return (self.breath.forward if self.base_is_fixed else self.breath.inverse)(points_lps_mm)

    def jacobian(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """(n,) Jacobian determinant of ``forward`` at fixed points (n, 3), as exact as that."""
        if self.base_is_fixed:
            return 1 / self.breath.determinant(self.breath.inverse(points_lps_mm))
        return self.breath.determinant(points_lps_mm)

    def points(self, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """``count`` random fixed_lps_mm and their moving_lps_mm (count, 3), in and up to 10 mm around the lungs."""
        mask = self.moving_mask if self.base_is_fixed else self.fixed_mask  # of the image that phi starts from
        distance = signed_distance_mm(mask)
        near, rng = np.flatnonzero(sitk.GetArrayViewFromImage(distance) <= _AROUND_MM), np.random.default_rng(seed)
        grid = Grid.of(mask)
        index_zyx = np.unravel_index(rng.choice(near, count), grid.shape)
        points = grid.to_lps_mm(np.stack(index_zyx[::-1], -1) + rng.uniform(-0.5, 0.5, (count, 3)))
        there = self.breath.forward(points)
        return (there, points) if self.base_is_fixed else (points, there)

    def write(self, folder: str | Path) -> None:
        """fixed, moving, fixed_mask, moving_mask (.nii.gz), both's landmarks and points (.csv) and pair.json."""
        folder = Path(folder)
        with replaced(folder, last="pair.json") as scratch:
            for name in _IMAGES:
                write_image(getattr(self, name), scratch / f"{name}.nii.gz")
            for kind, pair in (("landmarks", self.landmarks), ("points", self.points(_POINTS))):
                for name, points_lps_mm in zip(("fixed", "moving"), pair, strict=True):
                    write_landmarks(scratch / f"{name}_{kind}.csv", points_lps_mm)
            write_text(scratch / "pair.json", json.dumps(self.about, indent=1) + "\n")


@dataclass(frozen=True)
class _Chest:
    """Where the lungs are in the base, for a breath to be drawn around them."""

    low_lps_mm: np.ndarray
    high_lps_mm: np.ndarray
    middle_x: float  # between the lungs
    two: bool  # there are two of them
    domes_z: tuple[float, float]  # of the diaphragm: right, left

    @classmethod
    def of(cls, lungs: np.ndarray, grid: Grid) -> _Chest:
        """From lungs (z, y, x) bool on a grid along LPS."""
        index = np.argwhere(lungs)[:, ::-1]
        low, high = (grid.to_lps_mm(end) for end in np.percentile(index, (0.5, 99.5), axis=0))
        across = np.bincount(index[:, 0], minlength=grid.size[0])
        first, last = np.percentile(index[:, 0], (25, 75)).astype(int)
        middle = first + int(np.argmin(across[first : last + 1]))
        bottom, domes = np.where(lungs.any(0), lungs.argmax(0), -1), []
        for part in (bottom[:, :middle], bottom[:, middle:]):
            lowest = np.percentile(part[part >= 0], 70) if (part >= 0).any() else index[:, 2].min()
            domes.append(grid.origin_lps_mm[2] + lowest * grid.spacing_mm[2])
        two = bool(across[middle] < 0.5 * min(across[:middle].max(initial=0), across[middle:].max()))
        return cls(low, high, grid.origin_lps_mm[0] + middle * grid.spacing_mm[0], two, tuple(domes))


def breathe(
    image: sitk.Image, lungs: sitk.Image | None = None, seed: int = 0, settings: BreathingSettings | None = None
) -> BreathingPair:
    """A random pair from a chest CT in HU; without a mask its lungs are found by threshold.

    Raises NephiError where the image is not 3D, no lungs are found, the mask does not fit or a setting is out of range.
    """
    settings = settings or BreathingSettings()
    check_limits(settings)
    check_value(seed, Seed, "seed")
    lungs, rng = _lungs(image, lungs), np.random.default_rng(seed)
    volume, grid = _draw_base(image, lungs, rng, settings)
    step = tuple(slice(None, None, max(1, round(_COARSE_MM / s))) for s in grid.spacing_mm[::-1])
    coarse = Grid.of(grid.image(np.zeros(grid.shape, np.uint8))[tuple(step[::-1])])
    chest = _Chest.of(volume[1][step].numpy() > 0.5, coarse)
    breath, about = _draw_breath(chest, rng, settings)
    side = int(rng.choice((-1, 1))) if rng.random() < settings.one_lung and chest.two else 0
    identity = Breath(Spline(coarse, np.zeros((*coarse.shape, 3))), np.eye(3), breath.centre_lps_mm, np.zeros(3))

    def kept(points: np.ndarray, part: np.ndarray) -> np.ndarray:
        """The lungs that the pair is about: both, or those on one side of the base."""
        return (part > 0.5) & (side * (points[..., 0] + breath.centre_lps_mm[0] - chest.middle_x) >= 0)

    scans, masks, clean = [], [], []
    for state in (identity, breath):
        view = _draw_view(volume, grid, chest, state, kept, rng, settings)
        points = state.on_grid(view)
        hu, part = _sample(volume, grid, points, breath.centre_lps_mm)
        if (
            state is breath
        ):  # mass is preserved: tissue of volume J in the base has volume 1; vessels keep their density
            loose = part * np.clip((-200 - hu) / 300, 0, 1)
            hu += (hu + 1000).clip(0) * (breath.jacobian(view) - 1) * loose
        clean.append(hu)
        scans.append(view.image(_scan(hu, rng, settings)))
        masks.append(view.image(kept(points, part).astype(np.uint8)))
    landmarks = _landmarks(clean[0], masks, breath, rng)
    order = 1 if rng.random() < 0.5 else -1
    landmarks = landmarks if order == 1 else (landmarks[1], landmarks[0])
    (fixed, moving), (fixed_mask, moving_mask) = scans[::order], masks[::order]
    about = {"seed": seed, **about, "one_lung": side, "base_is_fixed": order == 1, "settings": asdict(settings)}
    return BreathingPair(fixed, moving, fixed_mask, moving_mask, landmarks, breath, order == 1, about)


def _lungs(image: sitk.Image, lungs: sitk.Image | None) -> sitk.Image:
    if check_image(image, "template").GetDimension() != 3:
        raise NephiError("template: a 3D chest CT is needed")
    lungs = lung_mask(image) if lungs is None else check_mask(lungs, image, "lungs")
    if lungs is None:
        raise NephiError("template: no lungs were found; give a mask of them, or a chest CT in HU")
    return lungs


def _sample(volume: torch.Tensor, grid: Grid, points: np.ndarray, centre_lps_mm: np.ndarray) -> np.ndarray:
    """Channels (c, z, y, x) on ``grid``, linear at points relative to the centre (z, y, x, 3); (c, z, y, x)."""
    half, origin = (np.array(grid.size) - 1) / 2, grid.to_index(centre_lps_mm)
    matrix = (grid.to_index(centre_lps_mm + np.eye(3)) - origin) / half
    places = points @ matrix.astype(np.float32) + (origin / half - 1).astype(np.float32)
    sampled = grid_sample(
        volume[None], torch.from_numpy(places)[None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return sampled[0].numpy()


def _draw_base(image: sitk.Image, lungs: sitk.Image, rng, settings) -> tuple[torch.Tensor, Grid]:
    """HU and lungs (2, z, y, x) of the CT around the lungs, scaled and warped at random, on a grid along LPS."""
    grid, inside = Grid.of(image), sitk.GetArrayViewFromImage(lungs) != 0
    ends = [np.flatnonzero(inside.any(tuple(a for a in range(3) if a != 2 - axis)))[[0, -1]] for axis in range(3)]
    corners = grid.to_lps_mm(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3))
    low, high = corners.min(0), corners.max(0)
    centre, scale = (low + high) / 2, rng.uniform(*settings.scale, 3)
    edges = np.sort(grid.corners_lps_mm(), axis=0)[[0, -1]]  # of the scanned region
    low, high = (centre + np.array(end - centre) * scale for end in (low, high))
    first, last = (centre + np.array(end - centre) * scale for end in edges)
    low, high = np.maximum(low - (35, 35, 60), first), np.minimum(high + (35, 35, 30), last)
    base = box_grid(low, high, 0.8 * np.min(settings.spacing_mm))
    warp = Breath(Spline.random(low, high, 70.0, rng.uniform(0, settings.warp_mm) / 2, rng),
                  np.diag(1 / scale), centre, np.zeros(3))  # fmt: skip
    scan = torch.from_numpy(sitk.GetArrayFromImage(image).astype(np.float32))
    volume = torch.stack([scan, torch.from_numpy(inside.astype(np.float32))])
    return torch.from_numpy(_sample(volume, grid, warp.on_grid(base), centre)), base


def _draw_breath(chest: _Chest, rng, settings: BreathingSettings) -> tuple[Breath, dict]:
    kind = rng.choice(("still", "tidal", "breath_hold"), p=(settings.still, settings.tidal,
                                                            1 - settings.still - settings.tidal))  # fmt: skip
    centre, half = (chest.low_lps_mm + chest.high_lps_mm) / 2, (chest.high_lps_mm - chest.low_lps_mm) / 2
    lattice = box_grid(centre - half - _REACH_MM, centre + half + _REACH_MM, _KNOTS_MM)
    control = np.zeros((*lattice.shape, 3))
    inhale = int(rng.choice((-1, 1)))  # 1: the base is the state of more air
    strength = {"still": 0.0, "tidal": 0.35, "breath_hold": 1.0}[kind]
    if strength:
        low, high = settings.tidal_mm if kind == "tidal" else settings.breath_hold_mm
        control += inhale * _draw_respiration(chest, lattice, inhale, rng.uniform(low, high), strength, rng, settings)
    for knots_mm, low, high in settings.smooth_mm:
        rms = rng.uniform(low, high) * {"still": 0.7, "tidal": 0.4, "breath_hold": 1.0}[kind]
        low_lps_mm, high_lps_mm = lattice.corners_lps_mm()[[0, -1]]
        control += Spline.random(low_lps_mm, high_lps_mm, knots_mm, rms, rng).on_grid(lattice)
    offset = rng.uniform(-1, 1, 3) * settings.offset_mm
    angles = np.deg2rad(rng.uniform(-1, 1, 3) * settings.rotation_deg)
    rotation = np.reshape(sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix(), (3, 3))
    there = tuple(np.add(lattice.origin_lps_mm, offset))
    lattice = Grid(lattice.size, lattice.spacing_mm, there, lattice.direction)
    while True:
        breath = Breath(Spline(lattice, control), rotation, centre, offset)
        least = float(breath.jacobian(lattice).min())
        if least > _LEAST_JACOBIAN:
            return breath, {"kind": str(kind), "base_inhaled": inhale == 1, "least_jacobian": least}
        control = control * 0.9


def _draw_respiration(chest, lattice, inhale, diaphragm_mm, strength, rng, settings) -> np.ndarray:
    """Displacement (z, y, x, 3) of the chest as it breathes in, at points of the state before or after."""
    centre, half = (chest.low_lps_mm + chest.high_lps_mm) / 2, (chest.high_lps_mm - chest.low_lps_mm) / 2
    points = lattice.slab_lps_mm(0, lattice.shape[0]).reshape(*lattice.shape, 3)
    p = (points - centre) / half
    x, y, z = np.moveaxis(p, -1, 0)
    left = 1 / (1 + np.exp(-(points[..., 0] - chest.middle_x) / 12))
    power, apex = rng.uniform(1.0, 1.8), chest.high_lps_mm[2]
    down = 0.0
    for share, dome in zip((1 - left, left), chest.domes_z, strict=True):
        fall_mm = diaphragm_mm * rng.uniform(0.75, 1.0)
        height = max(apex - dome - inhale * fall_mm, 40.0)  # of the lung in the deformed state
        t = np.maximum((apex - points[..., 2]) / height, 0) ** power
        down = down + share * fall_mm * t / (1 + t**8) ** (1 / 8)  # 0 at the apex, constant below the domes
    wall = rng.uniform(0.15, 0.5)  # tissue outside the ribs moves less
    down = down * (wall + (1 - wall) * np.exp(-(((x**2 + y**2) / 1.7) ** 3)))
    down = down * (1 + rng.uniform(0, 0.35) * np.tanh(y / 0.6))
    level = np.exp(-(((z - rng.uniform(-0.4, 0.2)) / 0.9) ** 2))
    to_front, to_side = strength * rng.uniform(*settings.wall_mm, 2)
    pitch = strength * np.deg2rad(rng.uniform(-1, 1) * settings.pitch_deg)
    lift = strength * rng.uniform(0, settings.lift_mm)
    u_x = to_side * np.tanh(x) * level
    u_y = -to_front * (1 - np.tanh(y / 0.7)) / 2 * level - lift - pitch * (points[..., 2] - centre[2])
    u_z = -down + pitch * (points[..., 1] - centre[1])
    return np.stack([u_x, u_y, u_z], -1)


def _draw_view(volume, grid: Grid, chest: _Chest, state: Breath, kept, rng, settings) -> Grid:
    """The field of view of one image: the lungs with random margins, within the scanned region."""
    coarse = box_grid(
        chest.low_lps_mm + state.offset_mm - _REACH_MM, chest.high_lps_mm + state.offset_mm + _REACH_MM, _COARSE_MM
    )
    points = state.on_grid(coarse)
    index = np.argwhere(kept(points, _sample(volume[1:], grid, points, state.centre_lps_mm)[0]))[:, ::-1]
    low, high = index.min(0), index.max(0)
    box = tuple(slice(a, b + 1) for a, b in zip(low[::-1], high[::-1], strict=True))
    first, last = grid.corners_lps_mm()[[0, -1]] - state.centre_lps_mm
    margins = rng.uniform(5, 40, (2, 3)) / _COARSE_MM
    margins[1, 2] = rng.uniform(5, 25) / _COARSE_MM
    if rng.random() < settings.cut:  # more often the base than the apex
        end = int(rng.random() < 0.2)
        margins[end, 2] = -rng.uniform(0, (25, 12)[end]) / _COARSE_MM
    ends = []
    for axis in range(3):
        rows = tuple(slice(None) if a == 2 - axis else box[a] for a in range(3))
        along = points[rows][..., axis]
        scanned = ((along >= first[axis]) & (along <= last[axis])).mean(tuple(a for a in range(3) if a != 2 - axis))
        seen = np.flatnonzero(scanned > 0.95)[[0, -1]]
        ends.append((max(low[axis] - margins[0, axis], seen[0]), min(high[axis] + margins[1, axis], seen[1])))
    low_lps_mm, high_lps_mm = (coarse.to_lps_mm(end) for end in np.transpose(ends))
    return box_grid(low_lps_mm, high_lps_mm, settings.spacing_mm)


def _scan(hu: np.ndarray, rng, settings: BreathingSettings) -> np.ndarray:
    """int16 HU as one scanner shows them: its kernel, noise and calibration."""

    def smooth(values: np.ndarray, sd_voxels) -> np.ndarray:
        kernel = sitk.DiscreteGaussian(sitk.GetImageFromArray(values), np.square(sd_voxels).tolist(), 8, 0.02, False)
        return sitk.GetArrayFromImage(kernel)

    hu = smooth(hu, np.append(np.full(2, rng.uniform(0, 0.5)), rng.uniform(0, 0.7)))
    noise = smooth(rng.standard_normal(hu.shape, np.float32), np.full(3, rng.uniform(0, 0.8)))
    hu += noise * np.float32(rng.uniform(*settings.noise_hu) / noise.std())
    hu = (hu + 1000) * rng.normal(1, 0.015) - 1000 + rng.normal(0, 8)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


def _landmarks(hu, masks, breath: Breath, rng, most: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Points of the base on vessels inside the lungs, and of the deformed image, (n, 3) each."""
    base, deformed = map(Grid.of, masks)
    image = base.image(hu)
    spots = sitk.SmoothingRecursiveGaussian(image, 2.0) - sitk.SmoothingRecursiveGaussian(image, 6.0)
    spots = torch.from_numpy(sitk.GetArrayFromImage(spots))
    radius = [max(1, round(6 / s)) for s in base.spacing_mm[::-1]]
    outside = torch.from_numpy(1 - sitk.GetArrayFromImage(masks[0]).astype(np.float32))[None]
    for axis, r in enumerate(radius):
        size, pad = np.ones((2, 3), int) * np.array([[1], [0]])
        size[axis], pad[axis] = 2 * r + 1, r
        outside = max_pool3d(outside, size.tolist(), 1, pad.tolist())
    peaks = (outside[0] == 0) & (max_pool3d(spots[None], 3, 1, 1)[0] == spots)
    index = np.argwhere(peaks.numpy())
    strongest = np.argsort(-spots.numpy()[tuple(index.T)], kind="stable")[: 3 * most]
    moved = breath.inverse(base.to_lps_mm(index[strongest, ::-1]))
    at = np.rint(deformed.to_index(moved)).astype(int)
    seen = ((at >= 0) & (at < deformed.size)).all(1)
    seen[seen] = sitk.GetArrayViewFromImage(masks[1])[tuple(at[seen].T[::-1])] > 0
    moved = moved[seen]
    if len(moved) == 0:
        raise NephiError("no vessel was found in the lungs of both images; give a CT that shows more vessels")
    moved = moved[np.sort(rng.permutation(len(moved))[:most])]
    return breath.forward(moved), moved


def generate(
    folder: str | Path,
    count: int,
    seed: int = 0,
    templates: Sequence[tuple[sitk.Image, sitk.Image | None]] = (),
    settings: BreathingSettings | None = None,
) -> Path:
    """Write ``count`` pairs, each to a folder of its own, and ``pairs.csv``, which lists them for a batch.

    ``templates`` are CTs and their lungs (None: found by threshold); half of the pairs are made from them where
    there are any, the others from procedural chests. Returns the path of the list. Raises NephiError as ``breathe``.
    """
    check_value(count, Count, "count")
    check_value(seed, Seed, "seed")
    folder = Path(folder)
    templates = [(image, _lungs(image, lungs)) for image, lungs in templates]
    rows = []
    with output_folder(folder), replaced(folder, last=_PAIRS) as scratch:
        for k in range(count):
            one = int(np.random.SeedSequence([seed, k]).generate_state(1)[0])
            use = templates and k % 2 == 0
            pair = breathe(*(templates[k // 2 % len(templates)] if use else procedural(one)), one, settings)
            name = f"pair{k:04d}"
            pair.write(scratch / name)
            rows.append([name, *(f"{name}/{role}{'.nii.gz' if role in _IMAGES else '.csv'}" for role in _WRITTEN)])
        write_csv(scratch / _PAIRS, [["name", *_WRITTEN], *rows])
    return folder / _PAIRS
