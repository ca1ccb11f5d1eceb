"""The main path: check -> masks -> align -> features -> optimise -> result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import SimpleITK as sitk
import torch

from .align import Affine, align
from .errors import NephiError
from .features import Volume
from .field import HybridCode, NeuralFields
from .fit import fit
from .image import check_image, check_mask, choose_window, looks_like_ct, lung_mask, work_image
from .objective import PairObjective, similarity
from .result import Registration
from .settings import BODY_MM, PRESETS, Settings, Stage, check
from .space import Cube, Grid

_MARGIN_MM = 10.0  # of the working grid around the masks
_DISTANCE_MM = 12.0  # where the masks' distance maps are cut off
_FINEST = 0.75  # working grids are no finer than this part of the images' voxels: it would only cost
_APART = "the masks do not overlap after alignment; use --align moments or centres"
_THREADS = 4  # the steps are too small for more


def register(
    fixed: sitk.Image,
    moving: sitk.Image,
    *,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    settings: Settings = PRESETS["balanced"],
    auto_mask: bool = True,
    device: str = "auto",
    progress: Callable[[str, float, dict], None] | None = None,
) -> Registration:
    """Register two 2D or 3D SimpleITK images of any grids; the result maps points both ways in LPS mm.

    ``progress(stage, fraction, terms)`` is called as it goes; an exception raised in it ends the run.
    Without masks, lungs are looked for in CTs (``auto_mask``); where none are found, or with other
    images, points are drawn from the whole images. Raises NephiError for input that can't be registered.
    """
    started = time.perf_counter()
    check(settings)
    tell = progress or (lambda stage, fraction, terms: None)
    target = choose_device(device)
    tell("reading", 0.0, {})
    fixed, moving = check_image(fixed, "fixed image"), check_image(moving, "moving image")
    if fixed.GetDimension() != moving.GetDimension():
        raise NephiError(
            f"the fixed image is {fixed.GetDimension()}D and the moving image {moving.GetDimension()}D; "
            "both must have the same dimension"
        )
    tell("masks", 0.02, {})
    fixed_mask = None if fixed_mask is None else check_mask(fixed_mask, fixed, "fixed mask")
    moving_mask = None if moving_mask is None else check_mask(moving_mask, moving, "moving mask")
    found = []
    if auto_mask and fixed.GetDimension() == 3 and looks_like_ct(fixed) and looks_like_ct(moving):
        fixed_mask, moving_mask, found = _find_lungs(fixed, moving, fixed_mask, moving_mask)

    tell("alignment", 0.04, {})
    affine, how = align(fixed, moving, fixed_mask, moving_mask, settings.align)
    pair = _Pair(fixed, moving, fixed_mask, moving_mask, affine, settings)

    generator = torch.Generator(target).manual_seed(settings.fit.seed)
    initial = torch.Generator().manual_seed(settings.fit.seed)
    field_settings = pair.field_settings
    dimension = fixed.GetDimension()
    fields = NeuralFields(field_settings, pair.cube.unit_mm, dimension, initial).to(target)
    upper = torch.tensor(pair.cube.upper_cube, dtype=torch.float32)
    code = HybridCode(field_settings, upper, code_size(pair.cube, field_settings.code_spacing_mm)).to(target)
    regularity = replace(settings.regularity, step_mm=settings.regularity.step_mm * pair.scale)
    objective = PairObjective(fields, code, settings.similarity, regularity, pair.cube.unit_mm, generator)

    stages = {round(stage.start * settings.fit.iterations): stage for stage in settings.similarity.stages}

    def step(number: int):
        if number in stages:
            objective.set_volumes(*pair.volumes(stages[number], target))
        return objective()

    def record(entry: dict) -> None:
        tell("optimising", 0.08 + 0.72 * entry["step"] / max(1, settings.fit.iterations), entry)

    tell("features", 0.06, {})
    try:
        history = fit(step, [*code.parameters(), *fields.parameters()], settings.fit, record)
    except torch.OutOfMemoryError:
        raise NephiError(
            "the GPU is out of memory: lower similarity.points, choose a larger similarity.stages.spacing_mm, "
            "another preset, or --device cpu"
        ) from None
    return Registration(
        fields=fields.eval().requires_grad_(False),
        code=code.eval().requires_grad_(False),
        cube=pair.cube,
        affine=affine,
        fixed_grid=Grid.of(fixed),
        moving_grid=Grid.of(moving),
        settings=settings,
        history=history,
        alignment=how,
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        found_masks=tuple(found),
        device=str(target),
        length_scale=pair.scale,
        seconds=time.perf_counter() - started,
    )


def choose_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``; raises NephiError where CUDA is asked for and missing."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise NephiError(f"unknown device '{name}': use auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            raise NephiError(f"device '{name}' is not there ({count} CUDA devices found); use --device cpu or auto")
    return torch.device(name)


def limit_threads(threads: int | None = None) -> None:
    """Few threads: the optimisation's steps are small, more threads only wait for each other."""
    threads = threads or min(_THREADS, torch.get_num_threads())
    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def code_size(cube: Cube, spacing_mm: float) -> tuple[int, ...]:
    """Nodes of the local code along x, y (, z): at most ``spacing_mm`` apart."""
    return tuple(math.ceil(2 * half / spacing_mm) + 1 for half in cube.half_sides_mm)


def _find_lungs(fixed, moving, fixed_mask, moving_mask):
    """The masks, with lungs put in where none is given; on both sides or on none."""
    given = (fixed_mask is not None, moving_mask is not None)
    fixed_mask = lung_mask(fixed) if fixed_mask is None else fixed_mask
    moving_mask = lung_mask(moving) if moving_mask is None else moving_mask
    if fixed_mask is None or moving_mask is None:
        return (fixed_mask if given[0] else None), (moving_mask if given[1] else None), []
    return fixed_mask, moving_mask, [name for name, g in zip(("fixed", "moving"), given, strict=True) if not g]


class _Pair:
    """Both images in the registration cube: the region worked on and its features at a stage."""

    def __init__(self, fixed, moving, fixed_mask, moving_mask, affine: Affine, settings: Settings):
        self.images, self.masks, self.affine, self.settings = (
            (fixed, moving),
            (fixed_mask, moving_mask),
            affine,
            settings,
        )
        direction = Grid.of(fixed).direction
        back = affine.inverse()
        region = np.concatenate([_region(fixed, fixed_mask), back(_region(moving, moving_mask))])
        if not _overlap(_region(fixed, fixed_mask), back(_region(moving, moving_mask)), direction):
            if fixed_mask is None or moving_mask is None:
                raise NephiError("the images do not overlap after alignment; use --align centres or give masks")
            raise NephiError(_APART)
        frame = Cube.around(region, direction)
        self.scale = min(1.0, 2 * frame.unit_mm / BODY_MM)
        everything = np.concatenate([Grid.of(fixed).corners_lps_mm(), region])
        self.cube = Cube.around(everything, direction)
        inside = self.cube.to_cube(region)
        margin = 0.0 if fixed_mask is None else _MARGIN_MM * self.scale / self.cube.unit_mm
        self.lower = np.maximum(inside.min(0) - margin, -self.cube.upper_cube - margin)
        self.upper = inside.max(0) + margin
        self.field_settings = replace(
            settings.field,
            wavelength_mm=settings.field.wavelength_mm * self.scale,
            code_spacing_mm=settings.field.code_spacing_mm * self.scale,
        )
        chosen = settings.similarity.window
        self.windows = [chosen or choose_window(i, m) for i, m in zip(self.images, self.masks, strict=True)]
        if fixed_mask is not None and moving_mask is not None:
            grid = self.grid(4.0 * self.scale)
            there = [self.on(grid, mask, way, 0.0) > 0.5 for way, mask in enumerate(self.masks)]
            if not (there[0] & there[1]).any():
                raise NephiError(_APART)

    def grid(self, spacing_mm: float) -> Grid:
        return self.cube.grid(spacing_mm, self.lower, self.upper)

    def on(self, grid: Grid, image: sitk.Image, way: int, outside: float) -> np.ndarray:
        """Fixed (way 0) or moving (way 1) image on a working grid, the moving one through the alignment."""
        transform = sitk.Transform(grid.dimension, sitk.sitkIdentity) if way == 0 else self.affine.transform()
        return sitk.GetArrayFromImage(work_image(image, grid, transform, outside))

    def volumes(self, stage: Stage, device) -> list[Volume]:
        return [self._volume(way, stage, device) for way in (0, 1)]

    def _volume(self, way: int, stage: Stage, device) -> Volume:
        s, image, mask = self.settings.similarity, self.images[way], self.masks[way]
        own = float(np.prod(image.GetSpacing()) ** (1 / image.GetDimension()))
        grid = self.grid(max(stage.spacing_mm * self.scale, _FINEST * own))
        low, high = self.windows[way]
        array = self.on(grid, image, way, low)
        array -= low
        array /= high - low
        scaled = torch.from_numpy(np.clip(array, 0, 1, out=array)).to(device)
        inside = distance = None
        if mask is not None:
            inside = torch.from_numpy(self.on(grid, mask, way, 0.0) > 0.5)
            if s.image_masked:
                scaled *= inside.to(device)
            if s.mask_margin_mm or s.boundary_weight:
                inside, distance = self._grown(way, grid, inside)
        features = similarity(s).prepare(scaled, stage.dilation)
        lower = torch.tensor(self.lower, dtype=torch.float32)
        volume = Volume(
            features,
            lower,
            grid.spacing_mm[0] / self.cube.unit_mm,
            inside,
            self._view(way),
        )
        if distance is not None:
            volume.distance = distance
        return volume.to(device)

    def _grown(self, way: int, grid: Grid, inside: torch.Tensor):
        """The mask grown by the margin, and its signed distance (on a 3 mm grid, cut off, in units of the cut)."""
        s = self.settings.similarity
        coarse = self.grid(3.0 * self.scale)
        mask = coarse.image((self.on(coarse, self.masks[way], way, 0.0) > 0.5).astype(np.uint8))
        distance = sitk.SignedMaurerDistanceMap(
            mask, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
        )
        if s.mask_margin_mm:
            margin = s.mask_margin_mm * self.scale
            inside = torch.from_numpy(sitk.GetArrayFromImage(grid.resample(distance, outside=1e3)) <= margin)
        cut = _DISTANCE_MM * self.scale
        values = torch.from_numpy(sitk.GetArrayFromImage(distance)).float().clamp(-cut, cut) / cut
        lower = torch.tensor(self.lower, dtype=torch.float32)
        return inside, Volume(values[..., None], lower, coarse.spacing_mm[0] / self.cube.unit_mm, None)

    def _view(self, way: int):
        """Matrix, offset and size that take cube points to the image's voxel index."""
        grid = Grid.of(self.images[way])
        d = grid.dimension

        def index(points_cube):
            points = self.cube.to_lps_mm(points_cube)
            return grid.to_index(points if way == 0 else self.affine(points))

        offset = index(np.zeros(d))
        matrix = (index(np.eye(d)) - offset).T
        return tuple(torch.tensor(np.asarray(v), dtype=torch.float32) for v in (matrix, offset, grid.size))


def _region(image: sitk.Image, mask: sitk.Image | None) -> np.ndarray:
    """Corners (n, d) in LPS mm of the mask's bounding box, or of the image."""
    grid = Grid.of(image)
    if mask is None:
        return grid.corners_lps_mm()
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(mask)
    box = np.array(shape.GetBoundingBox(1))
    low, size = box[: grid.dimension], box[grid.dimension :]
    corners = np.stack(np.meshgrid(*zip(low, low + size - 1, strict=True), indexing="ij"), -1)
    return grid.to_lps_mm(corners.reshape(-1, grid.dimension))


def _overlap(a: np.ndarray, b: np.ndarray, direction) -> bool:
    axes = np.reshape(direction, (a.shape[-1],) * 2)
    a, b = a @ axes, b @ axes
    return bool(((a.min(0) < b.max(0)) & (b.min(0) < a.max(0))).all())
