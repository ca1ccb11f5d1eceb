"""The result of a registration: both maps in LPS mm; evaluate, resample, save and load them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from .both import Both
from .config import decode
from .device import in_threads
from .errors import NephiError
from .files.folder import ResultFolder
from .files.tensors import Bounded, check_tensors, read_tensors, write_tensors
from .files.transform import displacement_transform
from .fitting.guidance import NOTHING, Guidance
from .images.align import Alignment
from .images.masks import drawn, mask_box
from .images.masks import inside as inside_of
from .images.sampling import interpolated
from .images.unseen import not_shown
from .images.warp import warn_of_blank, warn_of_labels, warn_of_side, warped_slices
from .journal import complete_moves
from .maps.bodies import Bodies
from .maps.border import Border
from .maps.code import HybridCode, zero_code
from .maps.consensus import as_optimised, consensus, consensus_in
from .maps.jacobian import exact_jacobian
from .maps.maps import FieldMap, Map, make_fields
from .maps.on_grids import OnGrids
from .maps.sampled import coarsest_displacement, held_error, joined, nodes_around
from .maps.sliding import WITHIN, Sliding, border_tensors, field_maps, of_field_maps
from .measure.quality import displacement_jacobian, random_points
from .measure.signals import measure_signals
from .measure.trust import Trust
from .settings import FieldSettings, Settings, check, from_dict
from .space.affine import Affine
from .space.cube import Cube
from .space.grid import Box, Grid

_CHUNK, _GPU_CHUNK = 4096, 8192  # points evaluated at a time: on a CPU they stay in its cache
_SLAB = 2**16  # voxels of a grid that they are chosen from
_JACOBIAN_NODES_MM = 3.0  # between the points at which the determinant is exact, where voxels are much finer
_FEWER_NODES = 0.25  # of the voxels, at most, for this to be worth while
_FOLD_MARGIN, _LEAST_FOLD_MARGIN = (
    3.0,
    0.1,
)  # margin below which a determinant may be a fold: in units of the largest error, and at least
_SIDES_MM = 1.5  # between the nodes of a written transform that slides
_FORMAT = "nephi-registration-2"


@dataclass
class Registration:
    """Forward map (fixed -> moving points) and inverse map (moving -> fixed), alignment included."""

    maps: Map  # in the cube
    cube: Cube
    alignment: Alignment
    fixed_grid: Grid
    moving_grid: Grid
    settings: Settings  # as requested; ``configured`` lists the changes
    length_scale: float = 1.0
    history: list[dict] = field(default_factory=list)
    fixed_mask: sitk.Image | None = None
    moving_mask: sitk.Image | None = None
    found_masks: tuple[str, ...] = ()
    configured: tuple[str, ...] = ()  # as text: which settings were adapted to the pair, and why
    guidance: Guidance = NOTHING
    notes: tuple[str, ...] = ()  # for the user, on how the result was obtained
    device: str = "cpu"
    seconds: float = 0.0

    @property
    def affine(self) -> Affine:
        """The alignment's map, fixed -> moving, which the fields begin with."""
        return self.alignment.affine

    def forward(self, points_lps_mm) -> np.ndarray:
        """Fixed points (n, d) in LPS mm -> the same anatomy in the moving image."""
        return self.affine(self.cube.to_lps_mm(self._evaluate(self.cube.to_cube(points_lps_mm), self.maps.forward)))

    def inverse(self, points_lps_mm) -> np.ndarray:
        """Moving points (n, d) in LPS mm -> the same anatomy in the fixed image."""
        aligned = self.affine.inverse()(points_lps_mm)
        return self.cube.to_lps_mm(self._evaluate(self.cube.to_cube(aligned), self.maps.inverse))

    @property
    def fields(self) -> Registration:
        """The same with the two fields as they were optimised in the place of their consensus.

        What these disagree on shows where either is wrong; the consensus' maps are inverses of each other.
        """
        maps = as_optimised(self.maps)
        maps = maps.apart() if isinstance(maps, Sliding) else maps
        return self if maps is self.maps else replace(self, maps=maps)

    def jacobian_determinant(self, points_lps_mm) -> np.ndarray:
        """Exact Jacobian determinant (n,) of the forward map at fixed points, alignment included."""

        def determinants(x: torch.Tensor) -> torch.Tensor:
            x.requires_grad_()
            return torch.linalg.det(exact_jacobian(self.maps.forward(x), x, create_graph=False))

        out = self._in_chunks(determinants, self.cube.to_cube(points_lps_mm))
        return out * np.float32(np.linalg.det(self.affine.matrix))

    def _in_chunks(self, work: Callable[[torch.Tensor], torch.Tensor], points_cube: np.ndarray) -> np.ndarray:
        """What ``work`` makes (n, ...) of points (n, d), some at a time."""
        many = _CHUNK if self.maps.device.type == "cpu" else _GPU_CHUNK
        some = points_cube if len(points_cube) else np.zeros((1, self.cube.dimension))  # networks take no empty batch
        parts = (self._tensor(some[start : start + many]) for start in range(0, len(some), many))
        found = list(in_threads(lambda x: work(x).cpu().numpy(), parts, self.maps.device))
        return np.concatenate(found)[: len(points_cube)]

    def _tensor(self, points_cube: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(points_cube, dtype=torch.float32, device=self.maps.device)

    @torch.no_grad()
    def _evaluate(self, points_cube: np.ndarray, through: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        flat = np.reshape(points_cube, (-1, points_cube.shape[-1]))
        # only the displacement comes in single precision, so that the map keeps the points' own
        moved = flat + self._in_chunks(lambda x: through(x) - x, flat)
        return moved.reshape(np.shape(points_cube))

    def displacement(self, grid: Grid, inverse: bool = False) -> np.ndarray:
        """Displacement (z, y, x, d) float32 in LPS mm at a grid's voxel centres, some slices at a time."""
        at_once = None if inverse else OnGrids.of(self.maps, self.cube, self.affine, grid)
        if at_once is not None:
            return at_once.displacement(grid)
        out, way = np.empty((*grid.shape, grid.dimension), np.float32), self.inverse if inverse else self.forward
        for rows in grid.slabs(_SLAB):
            points = grid.slab_lps_mm(rows.start, rows.stop)
            out[rows] = (way(points) - points).reshape(out[rows].shape)
        return out

    def sampled(self, grid: Grid, inverse: bool = False, good_mm: float | None = None) -> tuple[Grid, np.ndarray, dict]:
        """Displacement on the coarsest grid over ``grid`` that represents the map; see ``coarsest_displacement``.

        Its error is measured at 2,000 random points between the voxel centres of the image (or of the mask).
        """
        points = random_points(grid, self.moving_mask if inverse else self.fixed_mask, 2000, between=True)
        by = self._sampled_by_side if isinstance(self.maps, Sliding) else self._sampled_at
        return by(grid, inverse, good_mm, points)

    def _sampled_at(self, grid: Grid, inverse: bool, good_mm: float | None, points: np.ndarray):
        """``sampled`` of a smooth map, as fine as its error at points (n, d) in LPS mm asks for."""
        way = self.inverse if inverse else self.forward
        displacement = functools.partial(self.displacement, inverse=inverse)
        return coarsest_displacement(
            displacement, lambda places: way(places) - places, grid, points, way(points), self.length_scale, good_mm
        )

    def _sampled_by_side(self, grid: Grid, inverse: bool, good_mm: float | None, points: np.ndarray):
        """``sampled`` of a map that slides: each of its sides is smooth, and both are put together on a fine grid."""
        maps = self.maps
        assert isinstance(maps, Sliding), "only maps that slide have sides"
        inner, outer = (replace(self, maps=side) for side in (maps.within, maps.around))

        def is_outside(at: np.ndarray, moved: np.ndarray) -> np.ndarray:
            """(n,) bool: whether points (n, d) lie outside the fixed image once the inner map has moved them."""
            return ~self._in_chunks(maps.is_within, self.cube.to_cube(moved if inverse else at))[:, 0]

        at = random_points(grid, None, len(points))
        beyond = at[is_outside(at, inner.inverse(at) if inverse else at)]
        by_side = ((inner, points), (outer, beyond if len(beyond) else points))
        within, around = (side._sampled_at(grid, inverse, good_mm, places)[:2] for side, places in by_side)
        fine = grid.coarsened(_SIDES_MM * self.length_scale)
        out = joined(within, around, fine, is_outside)
        return fine, out, held_error(out, fine, points, (self.inverse if inverse else self.forward)(points))

    def transform(self, grid: Grid | None = None, inverse: bool = False) -> sitk.DisplacementFieldTransform:
        """The map as an ITK transform of points, fixed -> moving, that resamples a moving image onto ``grid``.

        ``inverse``: moving -> fixed. ``grid``: the grid of the field, by default that of the fixed (moving) image.
        """
        default = self.moving_grid if inverse else self.fixed_grid
        coarse, displacement, _ = self.sampled(default if grid is None else grid, inverse)
        return displacement_transform(displacement, coarse)

    def trust(self, fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform | None = None) -> Trust:
        """The expected error in mm, from the result and its images alone.

        ``transform``: the map as returned by ``transform()``, if it is available. Raises NephiError if the moving image
        shows nothing of the region.
        """
        transform = self.transform() if transform is None else transform
        hidden = not_shown(images := Both(fixed, moving), self.affine, Both(*self.guidance.excluded))
        signals = measure_signals(images, self.fixed_mask, transform, self.forward, hidden)
        return Trust.of(signals, self.fixed_grid, self.fixed_mask)

    def warp(
        self, image: sitk.Image, grid: Grid | None = None, *, labels: bool = False, inverse: bool = False
    ) -> sitk.Image:
        """A moving image warped onto the fixed image's grid, or onto ``grid``; ``inverse``: the other way round.

        ``labels``: nearest neighbour, 0 outside; otherwise linear, with the lowest value of the image outside. There is
        a notice if the image seems to be the wrong one. Raises NephiError for an image of another dimension.
        """
        grid = (self.moving_grid if inverse else self.fixed_grid) if grid is None else grid
        if image.GetDimension() != grid.dimension:
            raise NephiError(f"the input image is {image.GetDimension()}D, but the registration is {grid.dimension}D")
        warn_of_side(image, self.fixed_grid, self.moving_grid, inverse)
        if labels:
            warped = grid.resample(image, self.transform(grid, inverse), sitk.sitkNearestNeighbor)
        else:
            warn_of_labels(image)
            coarse, displacement, _ = self.sampled(grid, inverse)
            warped = grid.image(np.stack(list(warped_slices(image, grid, displacement, coarse, lowest(image)))))
        warn_of_blank(image, warped)
        return warped

    def jacobian_image(
        self, displacement: np.ndarray, grid: Grid, mask: sitk.Image | None, exact: bool = False
    ) -> tuple[Box, np.ndarray, dict[str, float] | None]:
        """Jacobian determinant (z, y, x; float32) in a box of the fixed grid, the box, and its error unless exact.

        In the mask, which gives the box, it is exact at the nodes of a grid of 3 mm and linear between them. It is
        exact at every voxel where it could be 0 or less, so that folds are counted exactly, and in coarse images or
        with ``exact`` at every voxel centre. It is 1 outside the mask. The error (rmse, max) is measured at 2,000 voxel
        centres; below the value ``exact_below`` the determinant is exact. Without a mask it is computed everywhere by
        central differences of the displacement, on the coarser grid of that.
        """
        if mask is None:
            coarse = grid.image(displacement_jacobian(displacement, grid))
            everywhere = tuple(slice(0, n) for n in self.fixed_grid.shape)
            return everywhere, sitk.GetArrayFromImage(self.fixed_grid.resample(coarse, outside=1.0)), None
        box = mask_box(mask)
        part = self.fixed_grid.part(box)
        inside = inside_of(mask)[box]
        out = np.ones(part.shape, np.float32)
        nodes = part.coarsened(_JACOBIAN_NODES_MM * self.length_scale)
        if exact or np.prod(nodes.size) > _FEWER_NODES * np.prod(part.size):
            return box, self.dense_jacobian(part, part.image(inside.astype(np.uint8)), out), None
        return box, out, self._interpolated_jacobian(nodes, part, inside, out)

    def _interpolated_jacobian(self, nodes: Grid, part: Grid, inside: np.ndarray, out: np.ndarray) -> dict[str, float]:
        """Writes the determinant on a grid into ``out`` (z, y, x), see ``jacobian_image``; returns its error."""
        near = nodes.image(nodes_around(part, nodes, inside).astype(np.uint8))
        side = replace(self, maps=self.maps.within) if isinstance(self.maps, Sliding) else self
        for row, values, where in zip(
            out, interpolated(side.dense_jacobian(nodes, near), nodes, part), inside, strict=True
        ):
            np.copyto(row, values, where=where)
        chosen = drawn(inside, 2000, np.random.default_rng(0))
        error = out[tuple(chosen.T)] - self.jacobian_determinant(part.to_lps_mm(chosen[:, ::-1]))
        exact_below = _FOLD_MARGIN * float(np.abs(error).max()) + _LEAST_FOLD_MARGIN
        low = out < exact_below
        low &= inside
        doubtful = np.argwhere(low)
        del low
        for start in range(0, len(doubtful), _SLAB):
            some = doubtful[start : start + _SLAB]
            out[tuple(some.T)] = self.jacobian_determinant(part.to_lps_mm(some[:, ::-1]))
        rmse = float(np.sqrt(np.mean(np.square(error))))
        return {"rmse": rmse, "max": float(np.abs(error).max()), "exact_below": exact_below}

    def dense_jacobian(self, grid: Grid, mask: sitk.Image | None, out: np.ndarray | None = None) -> np.ndarray:
        """Exact Jacobian determinant (z, y, x; float32) at every voxel centre of a grid, or of a mask on it.

        Outside the mask ``out`` keeps its values; by default these are 1.
        """
        out = np.ones(grid.shape, np.float32) if out is None else out
        inside = None if mask is None else sitk.GetArrayViewFromImage(mask) != 0
        at_once = OnGrids.of(self.maps, self.cube, self.affine, grid)
        for rows in grid.slabs(_SLAB):
            chosen = np.ones(out[rows].shape, bool) if inside is None else inside[rows]
            if at_once is not None and chosen.any():
                np.copyto(out[rows], at_once.determinants(grid.slices(rows.start, rows.stop)), where=chosen)
            elif chosen.any():
                points = grid.slab_lps_mm(rows.start, rows.stop)
                out[rows][chosen] = self.jacobian_determinant(points[chosen.reshape(-1)])
        return out

    # ---- the file of a registration ---------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Network, code, geometry and settings, to be evaluated again at any resolution (safetensors)."""
        maps = self.fields.maps
        parts, tensors = field_maps(maps), border_tensors(maps)
        for prefix, part in parts.items():
            for name, module in (("fields", part.fields), ("code", HybridCode(part.code))):  # sides share some
                tensors |= {f"{prefix}{name}.{k}": v.clone() for k, v in module.state_dict().items()}
        geometry = {
            "cube": vars(self.cube),
            "affine": {"matrix": self.affine.matrix.tolist(), "offset_mm": self.affine.offset_mm.tolist()},
            "fixed_grid": _plain(self.fixed_grid),
            "moving_grid": _plain(self.moving_grid),
            "maps": {p: {"code_size": m.code.size, "field": vars(m.fields.settings)} for p, m in parts.items()},
            "consensus": consensus_in(self.maps) is not None,
            "smooth": () if (found := consensus_in(self.maps)) is None else found.smooth,
            "length_scale": self.length_scale,
            "alignment": self.alignment.method,
        }
        metadata = {"format": _FORMAT, "settings": self.settings.to_json(), "geometry": json.dumps(geometry)}
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Registration:
        """The maps of a result folder, or of its registration file; raises NephiError for anything else."""
        path = Path(path)
        if path.is_dir():
            path = ResultFolder.opened(path).registration
        complete_moves(path)
        if not path.exists():
            raise NephiError(f"no such registration file: {path}")
        metadata, tensors = read_tensors(path, "a NePhi registration")
        if metadata.get("format") != _FORMAT:
            raise NephiError(f"{path} is not a NePhi registration (format {metadata.get('format')!r})")
        try:
            return cls._of_file(path, metadata, tensors, device)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise NephiError(f"{path} is damaged: its geometry or settings cannot be read ({reason})") from None

    @classmethod
    def _of_file(cls, path: Path, metadata: dict[str, str], tensors: dict, device: str) -> Registration:
        geometry = json.loads(metadata["geometry"])
        cube = Cube(*(tuple(geometry["cube"][k]) for k in ("centre_lps_mm", "half_sides_mm", "direction")))
        parts = {}
        for prefix, made in geometry["maps"].items():
            settings = decode(FieldSettings(), made["field"], "field.")
            check(Settings(field=settings), names=False)
            upper = torch.tensor(cube.half_extents_cube, dtype=torch.float32)
            with Bounded(tensors, path):
                fields = make_fields(settings, cube.unit_mm, cube.dimension)
                code = HybridCode(zero_code(settings, upper, tuple(made["code_size"])))
            modules: dict[str, torch.nn.Module] = {f"{prefix}fields.": fields, f"{prefix}code.": code}
            for name, module in modules.items():
                part = {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
                part.pop("upper_cube", None)  # in files of earlier versions; the cube has the same information
                check_tensors(part, module.state_dict(), path)
                module.load_state_dict(part)
                module.requires_grad_(False).to(device)
            parts[prefix] = FieldMap(fields, code)
        border = bodies = None
        if WITHIN in parts:
            border = Border(tensors["border"].to(device), upper.to(device))
            bodies = Bodies(tensors["bodies"].to(device), upper.to(device)) if "bodies" in tensors else None
        maps = of_field_maps(parts, border, bodies)
        if geometry.get("consensus"):  # files of former versions have no such entry
            smooth = geometry.get("smooth", ())  # one number in files of former versions
            along = smooth if isinstance(smooth, list) else [smooth] * cube.dimension
            maps = consensus(maps, [float(distance) for distance in along])
        elif isinstance(maps, Sliding):
            maps = maps.meeting()
        affine = Affine(*(np.array(geometry["affine"][name]) for name in ("matrix", "offset_mm")))
        return cls(
            maps=maps,
            cube=cube,
            alignment=Alignment(affine, geometry["alignment"]),
            fixed_grid=_grid(geometry["fixed_grid"]),
            moving_grid=_grid(geometry["moving_grid"]),
            settings=from_dict(json.loads(metadata["settings"]), names=False),
            length_scale=geometry["length_scale"],
            device=device,
        )


def lowest(image: sitk.Image) -> float:
    """The lowest finite value, used for what was not imaged; 0 if there is none."""
    array = sitk.GetArrayViewFromImage(image)
    low = float(array.min())
    if np.isfinite(low):
        return low
    finite = np.isfinite(array)
    return float(array[finite].min()) if finite.any() else 0.0


def transform(
    result: Registration | str | Path, grid: Grid | None = None, inverse: bool = False
) -> sitk.DisplacementFieldTransform:
    """``Registration.transform`` of a registration, or of the folder or file that one was saved in."""
    return _loaded(result).transform(grid, inverse)


def warp(
    result: Registration | str | Path,
    image: sitk.Image,
    grid: Grid | None = None,
    *,
    labels: bool = False,
    inverse: bool = False,
) -> sitk.Image:
    """``Registration.warp`` of a registration, or of the folder or file that one was saved in."""
    return _loaded(result).warp(image, grid, labels=labels, inverse=inverse)


def _loaded(result: Registration | str | Path) -> Registration:
    return result if isinstance(result, Registration) else Registration.load(result)


def _plain(grid: Grid) -> dict:
    return {k: getattr(grid, k) for k in ("size", "spacing_mm", "origin_lps_mm", "direction")}


def _grid(data: dict) -> Grid:
    return Grid(*(tuple(data[k]) for k in ("size", "spacing_mm", "origin_lps_mm", "direction")))
