"""What keeps bodies rigid exactly in a map that was optimised to keep them nearly so."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.image_pair import ImagePair
from ..images.masks import signed_distance_mm
from ..maps.bodies import Bodies, Held
from ..maps.border import Border
from ..maps.code import nodes, points_between, steps_between
from ..maps.jacobian import exact_determinants
from ..maps.maps import Map
from ..space.grid import Grid
from ..space.rigid import moved_along
from .guidance import bodies_lps_mm

_NODES_MM = 3.0  # between which it is held
_FAR_MM = 20.0  # room is told as far as that
_AROUND_NODES = 1.0  # bodies are rigid as far beyond them, so that the spline is within
_BESIDE_MM = 1.5  # from a body
_FADES_MM = 16.0  # around bodies, as far as they change the map
_SWEEPS = 40  # of the relaxation between bodies and where they change nothing
_PARTS = 8192  # points at a time
_LEAST = 0.1  # of a determinant, where bodies bend
_LESS, _MORE = 0.3, 1 / 3  # of a change that is too large, in the first round; and how much faster in each further one
_ROUNDS = 16  # at most: what folds then is told by the report
_CLEAR = 3  # of them in a row find nothing around a node in the end
_WATCHED = 0.5  # only where a determinant is lower nodes are looked at again
_POINTS = 8  # around each


@torch.no_grad()
def kept_rigid(labels: sitk.Image, maps: Map, border: Border, pair: ImagePair) -> Bodies | None:
    """The bodies of a label map on the fixed grid around a border, each with the rigid motion nearest to the map.

    Of a body that reaches within the border, that is the part around it; None where no body lies there.

    What takes the map to these motions is known in and next to the bodies, and 0 far from them; in between it is
    harmonic, so that it changes as little as possible. Where the map would fold, bodies bend instead.
    """
    cube, grid, half_extents = pair.cube, Grid.of(labels), maps.half_extents_cube.cpu()
    maps = Held(maps)  # which is what they change

    def as_points(points_lps_mm: np.ndarray) -> Tensor:
        return torch.tensor(cube.to_cube(points_lps_mm), dtype=torch.float32).to(maps.device)

    def ends_lps_mm(points_lps_mm: np.ndarray) -> np.ndarray:
        moved = torch.cat([maps.forward(part) for part in as_points(points_lps_mm).split(_PARTS)])
        return pair.affine(cube.to_lps_mm(moved.cpu().double().numpy()))

    found = (body[~border.within(as_points(body))[:, 0].cpu().numpy()] for _, body in bodies_lps_mm(labels))
    bodies = [voxels_lps_mm for voxels_lps_mm in found if len(voxels_lps_mm) > cube.dimension]
    if not bodies:
        return None
    spacing_mm = _NODES_MM * pair.scale
    size = nodes(cube.half_sides_mm, spacing_mm)
    points = points_between(half_extents, size)
    steps_mm = tuple(2 * np.asarray(cube.half_sides_mm) / (np.array(size) - 1))
    held = Grid(size, steps_mm, tuple(cube.to_lps_mm(-cube.half_extents_cube)), cube.direction)
    numbers = np.zeros(grid.shape, np.int32)
    for number, voxels_lps_mm in enumerate(bodies, 1):
        numbers[tuple(np.rint(grid.to_index(voxels_lps_mm)).astype(int).T[::-1])] = number
    image = grid.image(numbers)
    far_mm = _FAR_MM * pair.scale
    # it counts from the centres of the outermost voxels
    distance = sitk.Clamp(
        signed_distance_mm(image != 0) - float(np.mean(grid.spacing_mm)) / 2, sitk.sitkFloat32, -far_mm, far_mm
    )
    room_mm = torch.from_numpy(sitk.GetArrayFromImage(held.resample(distance, outside=far_mm)))
    reach = [int(np.ceil(_AROUND_NODES * spacing_mm / step)) for step in grid.spacing_mm]
    near = image + sitk.GrayscaleDilate(image, reach, sitk.sitkBall) * sitk.Cast(image == 0, sitk.sitkInt32)
    numbers_at = sitk.GetArrayFromImage(held.resample(near, interpolator=sitk.sitkNearestNeighbor)).ravel()
    # beyond a body the change is what it is next to it: farther off, the map may move as it likes
    surface = Border((room_mm / cube.unit_mm).half(), half_extents)
    beside = surface.brought(points, surface.at(points)[0].clamp(max=_BESIDE_MM * pair.scale / cube.unit_mm))
    points_lps_mm = cube.to_lps_mm(beside.double().numpy())
    to_cube = np.linalg.inv(pair.affine.matrix).T @ cube.axes / cube.unit_mm
    change = torch.zeros(points.shape)
    for number, voxels_lps_mm in enumerate(bodies, 1):
        rows = np.flatnonzero(numbers_at == number)
        if len(rows):
            there = points_lps_mm[rows]
            known = (torch.tensor(one)[None] for one in (there, voxels_lps_mm, ends_lps_mm(voxels_lps_mm)))
            off_mm = moved_along(*known)[0].numpy() - ends_lps_mm(there)
            change[rows] = torch.tensor(off_mm @ to_cube, dtype=torch.float32)
    shape = (-1, *reversed(size))
    free = (torch.from_numpy(numbers_at).reshape(shape[1:]) == 0) & (room_mm < _FADES_MM * pair.scale)
    values = torch.cat([room_mm[None] / cube.unit_mm, _relaxed(change.T.reshape(shape), free)])
    return _unfolded(Bodies(values.half(), half_extents).to(maps.device), maps, border)


def _relaxed(values: Tensor, free: Tensor) -> Tensor:
    """Values (c, (z,) y, x), where ``free`` ((z,) y, x) the mean of those around them."""
    for _ in range(_SWEEPS):
        total = torch.zeros_like(values)
        for axis, n in enumerate(free.shape, 1):
            total.narrow(axis, 1, n - 1).add_(values.narrow(axis, 0, n - 1))
            total.narrow(axis, 0, n - 1).add_(values.narrow(axis, 1, n - 1))
            for end in (0, n - 1):  # beyond the sides the value there holds
                total.select(axis, end).add_(values.select(axis, end))
        values = torch.where(free, total.div_(2 * free.ndim), values)
    return values


def _unfolded(bodies: Bodies, maps: Held, border: Border) -> Bodies:
    """The same, changing less around places where the map that they change would fold, or nearly so."""
    nodes_cube = points_between(bodies.half_extents_cube, bodies.size)
    steps = steps_between(bodies.half_extents_cube, bodies.size)
    generator = torch.Generator().manual_seed(0)

    def lowest(rows: Tensor) -> Tensor:
        """The lowest determinant ((z,) y, x) that was found around each node, of those in rows; others, infinite."""
        points = nodes_cube[rows]
        points = points + (torch.rand(points.shape, generator=generator).to(points) - 0.5) * steps
        found = exact_determinants(maps.beside(bodies, border).forward, points)
        found[border.within(points)[:, 0]] = torch.inf  # where the map around is hardly asked for
        around = torch.full((len(nodes_cube),), torch.inf, device=rows.device)
        return around.scatter_reduce(0, rows, found.to(around), "amin").reshape(bodies.values.shape[1:])

    changed = (bodies.values[1:] != 0).any(0).flatten() & (border.nearest(nodes_cube)[:, 0] > -steps.norm())
    watched = _pooled("max", (lowest(changed.nonzero()[:, 0]) < _WATCHED).float())
    left = _CLEAR * watched  # looks around each node
    for turn in range(_ROUNDS):
        rows = left.flatten().nonzero()[:, 0]
        if not len(rows):
            break
        found = lowest(rows.repeat(_POINTS))
        left = torch.where(found < _WATCHED, (left - 1).clamp(min=0), 0.0)
        here = (found < _LEAST).float()
        if here.any():
            values = bodies.values.float()
            less = 1 - (1 - _LESS) ** (1 + _MORE * turn)
            values[1:] *= 1 - less * _pooled("avg", _pooled("max", here))
            bodies = Bodies(values.half(), bodies.half_extents_cube)
            left[_pooled("max", here, 7) > 0] = _CLEAR  # where it gets less, it may fold, too
    return bodies


def _pooled(how: str, values: Tensor, nodes: int = 3) -> Tensor:
    """The largest, or the mean, of so many values ((z,) y, x) along each axis."""
    pool = getattr(F, f"{how}_pool{values.ndim}d")
    return pool(values[None, None], nodes, stride=1, padding=nodes // 2)[0, 0]
