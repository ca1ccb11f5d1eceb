"""A procedural chest: its shapes, vessels and motion, and the rendering of its CT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise

import numpy as np
import SimpleITK as sitk

from ..errors import NephiError
from ..space.grid import Grid

FIELD_OF_VIEW = {2: (320, 280), 3: (320, 280, 280)}  # mm of anatomy that fill the smallest fitting image
_CORONAL_Y = 10.0  # where the 2D phantom cuts the anatomy: heart, trachea and both hila
KNOTS_MM = 10.0  # of anatomy: the map is interpolated between such knots to a few thousandths of a mm


@dataclass(frozen=True)
class Motion:
    """Exhale to inhale: the diaphragm goes down, the wall out, and a smooth random part; invertible."""

    dimension: int
    scale: float  # mm of the image per mm of anatomy
    fixed_centre_lps_mm: np.ndarray
    moving_centre_lps_mm: np.ndarray
    wave_vectors: np.ndarray  # (k, 3) radian per mm
    wave_phases: np.ndarray  # (k,)
    wave_amplitudes: np.ndarray  # (k, 3) mm

    def to_anatomy(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """(..., d) points of the fixed image -> (..., 3) anatomy points."""
        a = (np.asarray(points_lps_mm, float) - self.fixed_centre_lps_mm) / self.scale
        flat = self.dimension == 2
        return np.stack([a[..., 0], np.full(a.shape[:-1], _CORONAL_Y), -a[..., 1]], -1) if flat else a

    def from_anatomy(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) anatomy points -> (..., d) points of the fixed image."""
        kept = points if self.dimension == 3 else points[..., [0, 2]] * (1.0, -1.0)
        return kept * self.scale + self.fixed_centre_lps_mm

    def forward(self, points_lps_mm: np.ndarray) -> np.ndarray:
        """(..., d) points of the fixed image -> the same tissue in the moving image, exactly."""
        a = self.to_anatomy(points_lps_mm)
        x, y, z = np.moveaxis(a, -1, 0)
        down = (1 - np.tanh((z - 5) / 64)) / 2  # 1 at the base, 0 at the apex
        inner = 0.3 + 0.7 * np.exp(-(((x / 135) ** 2 + (y / 100) ** 2) ** 2))  # the wall moves less
        level = np.exp(-((z / 110) ** 2))
        shift = np.sin(a @ self.wave_vectors.T + self.wave_phases) @ self.wave_amplitudes
        shift[..., 0] += 4.5 * np.tanh(x / 70) * level
        shift[..., 1] -= 6 * (1 - np.tanh(y / 70)) / 2 * level
        shift[..., 2] -= 24 * down * inner * (1 + 0.15 * np.tanh(y / 60))
        return self.from_anatomy(a + shift) + (self.moving_centre_lps_mm - self.fixed_centre_lps_mm)

    def derivative(self, points_lps_mm: np.ndarray, step_mm: float = 1e-3) -> np.ndarray:
        """(..., d, d) derivative of ``forward`` by central differences; row: output, column: input."""
        steps = step_mm * np.eye(self.dimension)
        columns = [self.forward(points_lps_mm + h) - self.forward(points_lps_mm - h) for h in steps]
        return np.stack(columns, -1) / (2 * step_mm)

    def inverse(self, points_lps_mm: np.ndarray, tolerance_mm: float = 1e-6) -> np.ndarray:
        """(..., d) points of the moving image -> fixed image, by Newton's method to ``tolerance_mm``."""
        target = np.asarray(points_lps_mm, float)
        x = target + (self.fixed_centre_lps_mm - self.moving_centre_lps_mm)
        for _ in range(50):
            gap = self.forward(x) - target
            if np.abs(gap).max(initial=0.0) < tolerance_mm:
                return x
            x = x - np.linalg.solve(self.derivative(x), gap[..., None])[..., 0]
        raise NephiError("The phantom's map could not be inverted there: choose points nearer to the image.")

    def on_grid(self, grid: Grid, function: Callable, inhale: bool) -> np.ndarray:
        """``function(motion, points_lps_mm) -> (..., c)`` at every voxel of the fixed or the moving image."""
        return on_grid(grid, partial(function, self), KNOTS_MM * self.scale)


def draw_waves(rng, n: int, shortest_mm: float, longest_mm: float) -> tuple[np.ndarray, np.ndarray]:
    direction = rng.normal(size=(n, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return direction * 2 * np.pi / rng.uniform(shortest_mm, longest_mm, (n, 1)), rng.uniform(0, 2 * np.pi, n)


def draw_motion(grid: Grid, offset_mm: np.ndarray, rng, kind: type[Motion] = Motion) -> Motion:
    d, centre = grid.dimension, grid.to_lps_mm((np.array(grid.size) - 1) / 2)
    vectors, phases = draw_waves(rng, 8, 80, 180)  # longer waves are larger: their slopes stay bounded
    amplitudes = rng.normal(size=(8, 3)) * 0.017 / np.linalg.norm(vectors, axis=1, keepdims=True)
    scale = float((np.array(grid.size) * grid.spacing_mm / FIELD_OF_VIEW[d]).min())
    return kind(d, scale, centre, centre + offset_mm, vectors, phases, amplitudes)


def _smooth_step(x, edge: float, width: float):
    return 0.5 + 0.5 * np.tanh((x - edge) / width)


# Shapes: about the signed distance (mm, positive inside) to a surface, at anatomy points x, y, z.
def _all(*shapes):
    """The intersection of all shapes."""
    return reduce(np.minimum, shapes)


def _ellipsoid(x, y, z, centre, radii):
    rho = np.sqrt(sum(((p - c) / r) ** 2 for p, c, r in zip((x, y, z), centre, radii, strict=True)))
    return (1 - rho) * min(radii)


def _section(x, y, z):
    """Of the rib cage, a stadium in each axial section: half widths, radius at a point and the cage's, which closes."""
    wide, back = np.maximum(np.abs(x) - 40, 0), y - 8 * _smooth_step(z, 60, 30)
    return wide, back, np.hypot(wide / 83, back / 85), (1 - np.clip(z / 110, 0, 1) ** 2.4) ** (1 / 2.4)


def _thorax(x, y, z):
    """Inside of the rib cage."""
    wide, back, radius, of_cage = _section(x, y, z)
    return np.hypot(wide, back) * (of_cage / (radius + 1e-3) - 1)


def cage(x, y, z):
    """Where ``_thorax`` is, too, but smooth within: 0 on the middle plane, 1 on the rib cage."""
    *_, radius, of_cage = _section(x, y, z)
    return (radius + 1e-3) / np.maximum(of_cage, 1e-3)


def _heart(x, y, z):
    return _ellipsoid(x + 0.25 * (z + 24), y, z, (20, -26, -24), (58, 46, 54))


def _above_diaphragm(x, y, z):
    """Two domes, the right one higher; low behind and at the sides."""
    fall = 34 * ((np.abs(x) - 62) / 60) ** 2 + 40 * np.maximum(y / 84, -0.4) ** 2
    return 0.8 * (z + fall - np.where(x < 0, -36, -45))


def _lung(x, y, z):
    column = 6 + (13 + 5 * np.cos(z / 17)) * _smooth_step(y, -38, 14) - np.abs(x - 2)
    spine = 29 - np.hypot(x, y - 64)
    mediastinum = 6 * np.logaddexp(np.logaddexp(column / 6, spine / 6), _heart(x, y, z) / 6)
    apex = 0.8 * (109 - 0.014 * (np.abs(x) - 52) ** 2 - 0.006 * (y - 8) ** 2 - z)
    return _all(_thorax(x, y, z), -mediastinum, _above_diaphragm(x, y, z), apex)


def _chain(points, radius: float, end_radius: float | None = None) -> list[tuple]:
    return [(*a, *b, radius, end_radius or radius) for a, b in pairwise(points)]


def _grow(root, heading, targets: np.ndarray, leaf_radius: float) -> tuple[list, list]:
    """A tree that supplies all targets: each branch goes towards its targets and splits them in two.

    Radii follow the number of targets supplied (Murray's law). Returns capsules and forks (x, y, z).
    """
    rows, forks = [], []
    open_ends = [(np.array(root, float), np.array(heading, float), targets)]
    while open_ends:
        start, heading, left = open_ends.pop()
        n, centre = len(left), left.mean(0)
        end = centre if n == 1 else start + (0.42 if n > 8 else 0.6) * (centre - start)
        length = np.linalg.norm(end - start)
        bend = start + 0.45 * length * heading
        t = np.linspace(0, 1, 5 if length > 20 else 3)[:, None]
        rows += _chain((1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end, leaf_radius * n**0.36)
        if n == 1:
            continue
        forks.append(end)
        heading = (end - bend) / max(np.linalg.norm(end - bend), 1e-6)
        longest = np.linalg.svd(left - centre, full_matrices=False)[2][0]
        order = np.argsort((left - centre) @ longest)
        open_ends += [(end, heading, left[part]) for part in (order[: n // 2], order[n // 2 :])]
    return rows, forks


def grow_trees(rng, dimension: int, leaves: int = 230) -> dict[str, np.ndarray]:
    flat = dimension == 2
    cloud = rng.uniform((-124, -86, -120), (124, 92, 110), (12000, 3))
    cloud[:, 1] = _CORONAL_Y if flat else cloud[:, 1]
    cloud = cloud[_lung(*cloud.T) > 4]
    vessels, airways, forks, carina = [], _chain([(0, 10, 38), (0, 2, 150)], 8.5), [], (0, 10, 38)
    for side in (-1, 1):
        here = cloud[cloud[:, 0] * side > 0]
        hilum = np.array([34.0 * side, _CORONAL_Y if flat else 4.0, 14.0])
        for lift in (8.0, -12.0):  # artery above, vein below
            targets = rng.choice(here, 60 if flat else leaves, replace=False)
            rows, found = _grow(hilum + (0, 0, lift), (0.8 * side, 0, np.sign(lift) * 0.3), targets, 0.85)
            vessels += rows
            forks += found
        airways += _chain([carina, (20 * side, 10, 26), hilum], 5.5)
        targets = rng.choice(here, 10 if flat else 24, replace=False)
        airways += _grow(hilum, (0.8 * side, 0, -0.4), targets, 0.9)[0]
    arch = [(10, -20, 10), (-4, -18, 45), (4, -6, 66), (18, 16, 68), (24, 36, 54), (20, 46, -150)]
    great = [
        *_chain(arch, 12.5), *_chain([(20, -28, 14), (22, -14, 26), (12, 0, 24)], 12),  # aorta, pulmonary
        *_chain([(12, 0, 24), (-38, 4, 22)], 10, 7), *_chain([(16, 0, 25), (36, 6, 24)], 10, 7.5),
        *_chain([(-24, -12, 0), (-22, -10, 150)], 8.5), *_chain([(22, 0, 72), (34, -4, 150)], 6),
    ]  # fmt: skip
    trees = {"vessels": vessels, "airways": airways, "great": great}
    trees["forks"] = [fork for fork in forks if _lung(*fork) > 5]
    return {name: np.array(rows) for name, rows in trees.items()}


def on_grid(grid: Grid, function: Callable, knots_mm: float) -> np.ndarray:
    """A smooth ``function(points_lps_mm) -> (..., c)`` at every voxel, (z, y, x, c) float32.

    Evaluated about every ``knots_mm`` (at most) and interpolated by cubics.
    """
    step = max(1, int(knots_mm / max(grid.spacing_mm)))
    index = [np.arange(-step, n + 2 * step + 1, step) for n in grid.size]
    result = function(grid.to_lps_mm(np.stack(np.meshgrid(*index[::-1], indexing="ij")[::-1], -1)))
    for axis, n in enumerate(grid.shape):
        at = np.arange(n)
        t, base = at % step / step, at // step
        weights = np.zeros((n, result.shape[axis]))
        cubic = (-t * (t - 1) * (t - 2) / 6, (t + 1) * (t - 1) * (t - 2) / 2,
                 -(t + 1) * t * (t - 2) / 2, (t + 1) * t * (t - 1) / 6)  # fmt: skip
        weights[at[:, None], base[:, None] + np.arange(4)] = np.stack(cubic, 1)
        result = np.moveaxis(np.tensordot(weights, result, (1, axis)), 0, axis)
    return result.astype(np.float32)


class Canvas:
    """The voxels of one image as anatomy points, with how much the tissue has grown there."""

    def __init__(self, grid: Grid, motion: Motion, inhale: bool):
        def seen(motion: Motion, points_lps_mm: np.ndarray) -> np.ndarray:
            points = motion.inverse(points_lps_mm) if inhale else points_lps_mm
            growth = np.linalg.det(motion.derivative(points)) if inhale else np.ones(points.shape[:-1])
            return np.concatenate([motion.to_anatomy(points), growth[..., None]], -1)

        *xyz, self.growth = np.moveaxis(motion.on_grid(grid, seen, inhale), -1, 0)
        self.grid, self.motion, self.inhale, self.xyz = grid, motion, inhale, np.stack(xyz)
        self.blur = float(np.mean(grid.spacing_mm)) / motion.scale  # the width of an edge: a voxel

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """Part of each voxel (0..1) inside a shape."""
        return np.clip(distance / self.blur + 0.5, 0, 1)

    def paint(self, capsules: np.ndarray, grow: float = 0.0) -> np.ndarray:
        """Part of each voxel (0..1) inside the capsules, their radii grown by ``grow`` mm."""
        total = np.zeros(self.grid.shape, np.float32)
        start, end, radius = np.split(np.float32(capsules + [*[0] * 6, grow, grow]), (3, 6), axis=1)
        ends = np.stack([self.motion.from_anatomy(p) for p in (start, end)])
        ends = self.grid.to_index(self.motion.forward(ends) if self.inhale else ends)
        reach = 1.6 * self.motion.scale * (radius.max(1, keepdims=True) + self.blur)  # mm; inhale stretches
        pad = reach / self.grid.spacing_mm + 1
        low = np.maximum(np.floor(ends.min(0) - pad), 0).astype(int)
        high = np.minimum(np.ceil(ends.max(0) + pad) + 1, self.grid.size).astype(int)
        column = (3, *[1] * self.grid.dimension)
        for k in np.flatnonzero((low < high).all(1)):
            box = tuple(slice(a, b) for a, b in zip(low[k][::-1], high[k][::-1], strict=True))
            along = end[k] - start[k]
            gap = self.xyz[(slice(None), *box)] - start[k].reshape(column)
            t = np.clip(np.tensordot(along, gap, 1) / max(along @ along, 1e-6), 0, 1)
            gap -= along.reshape(column) * t
            inside = radius[k, 0] + t * (radius[k, 1] - radius[k, 0]) - np.sqrt((gap**2).sum(0))
            np.maximum(total[box], self.cover(inside), out=total[box])
        return total


def render(canvas: Canvas, trees: dict, waves: tuple, rng) -> tuple[sitk.Image, sitk.Image]:
    """CT (HU, int16) and lung mask (uint8): tissues are put on one another from the outside in."""
    (x, y, z), paint = canvas.xyz, canvas.paint
    hu = np.full(canvas.grid.shape, -1000.0, np.float32)

    def blend(part: np.ndarray, value) -> None:
        hu[...] += part * (value - hu)

    def put(shape: np.ndarray, value) -> None:
        blend(canvas.cover(shape), value)

    mottle = np.zeros_like(hu)
    for (a, b, c), phase in zip(waves[0].astype(np.float32), waves[1].astype(np.float32), strict=True):
        mottle += np.cos(a * x + b * y + c * z + phase)
    mottle *= np.float32(len(waves[1]) ** -0.5)
    # trunk: fat, muscle, the inside of the rib cage
    rho = np.sqrt((x / 151) ** 2 + ((y - 3) / 117) ** 2 + 1e-6)
    body = np.hypot(x, y - 3) * ((1 - 0.22 * _smooth_step(z, 125, 25)) / rho - 1)
    thorax = _thorax(x, y, z)
    wall = 26 - np.abs(thorax + 12) + 0.1 * y + 2 * np.maximum(z - 60, 0)
    put(body, -105 + 8 * mottle)
    put(_all(body - 11 - 5 * np.tanh(-y / 60) - 3 * mottle, wall), 48 + 6 * mottle)
    put(thorax - 1, -90)
    # abdomen: diaphragm, liver, stomach with gas
    above = _above_diaphragm(x, y, z)
    below = _all(thorax - 3, -above)
    stomach = _all(below - 3, _ellipsoid(x, y, z, (60, -24, -96), (44, 40, 42)))
    put(_all(below, above + 4), 45)
    put(_all(below, 22 - x - 0.3 * (z + 60) - 0.004 * y**2), 60 + 4 * mottle)
    put(stomach, 30)
    put(_all(stomach - 4, -34 - y), -960)
    # mediastinum, then lungs: the parenchyma keeps its mass, so its density falls as it grows
    great = paint(trees["great"])
    put(_heart(x, y, z) - 3, 44)
    blend(great, 46)
    lung = _lung(x, y, z)
    air = canvas.cover(lung) * (1 - great)
    blend(air, (165 + 35 * np.tanh(y / 60) + 22 * mottle) / canvas.growth - 1000)
    oblique = z + 5 - 0.9 * np.where(x < 0, 1, 0.8) * (y + 8) + 5 * np.sin(x / 25)
    blend(np.clip(1.3 - 0.74 * np.abs(oblique) / canvas.blur, 0, 1) * air * 0.14, 20)  # fissure
    # spine: discs, processes, arch, vertebrae with marrow, canal
    level = z % 24 - 12
    disc = 16 - np.hypot(x, (y - 62) * 1.1)
    vertebra = _all(disc + 1, 9.5 - np.abs(level))
    put(disc, 90)
    put(_all(4 - np.abs(x), 14 - np.abs(y - 101), 7 - np.abs(level)), 300)
    put(15 - np.hypot(x, y - 84), 330)
    put(vertebra, 420)
    put(vertebra - 2.2, 190 + 30 * mottle)
    put(8.5 - np.hypot(x, y - 84), 25)
    # ribs, which end in cartilage, sternum, shoulder blades; vessels and airways last
    rib = _all(5 - np.hypot(thorax + 7.5, ((z - 0.33 * y) % 25 - 12.5) * 0.7), 108 - z)
    sternum = _all(19 - np.abs(x), 5.5 - np.abs(thorax + 9), -y - 20, 60 - np.abs(z - 35))
    put(rib, 480 - 370 * _smooth_step(-y, 62, 4))
    put(rib - 2, 200 - 110 * _smooth_step(-y, 62, 4))
    put(sternum, 250)
    put(_all(2.6 - np.abs(thorax + 20), np.abs(x) - 52, y - 18, z - 2, 105 - z), 380)
    blend(paint(trees["vessels"]) * np.maximum(air, great), 45)
    blend(paint(trees["airways"], grow=0.9), -40)
    blend(paint(trees["airways"]), -985)
    hu += 16 * rng.standard_normal(hu.shape, np.float32)
    ct = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    mask = (lung > 0) & (great < 0.5)
    return canvas.grid.image(ct), canvas.grid.image(mask.astype(np.uint8))
