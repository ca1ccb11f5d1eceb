"""Both images in the registration cube: the region worked on, and what is compared in it at a scale."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..errors import NephiError
from ..settings import BODY_MM, Features, Settings
from ..space.affine import Affine
from ..space.cube import Cube
from ..space.grid import Grid
from .masks import choose_window, looks_like_ct, mask_box
from .resample import DeviceImage, DeviceSlices
from .slices import Slices
from .volume import Volume, VolumePair

_NODES = 4.0  # voxels between two nodes of the local code, at least: what is finer follows the noise
_MARGIN_MM = 10.0  # of the working grid around the masks
_DISTANCE_MM = 12.0  # where the masks' distance maps are cut off
_CPU = torch.device("cpu")
_APART = "the masks do not overlap after alignment; use --align moments or centres"


class Pair:
    """The cube around both images (lengths scaled for small ones), and their features on working grids.

    Raises NephiError where the images, or their masks, are apart after the alignment.
    """

    def __init__(
        self,
        fixed: sitk.Image,
        moving: sitk.Image,
        fixed_mask: sitk.Image | None,
        moving_mask: sitk.Image | None,
        affine: Affine,
        settings: Settings,
        trusted: bool = True,
        cube_margin_mm: float | None = None,
    ):
        """``trusted``: the masks were given, not guessed, so that what lies outside them may be left out.

        ``cube_margin_mm``: the cube is the masks' box and this much around it, so that lungs fill it alike
        whatever the field of view; None: it covers the whole fixed image.
        """
        self.images, self.masks = (fixed, moving), (fixed_mask, moving_mask)
        self._device_images: dict[int, DeviceImage] = {}
        self.affine, self.settings, self.trusted = affine, settings, trusted
        direction = Grid.of(fixed).direction
        regions = _region(fixed, fixed_mask), affine.inverse()(_region(moving, moving_mask))
        if not _overlap(*regions, direction):
            if fixed_mask is None or moving_mask is None:
                raise NephiError("the images do not overlap after alignment; use --align centres or give masks")
            raise NephiError(_APART)
        region = np.concatenate(regions)
        self.scale = min(1.0, 2 * Cube.around(region, direction).unit_mm / BODY_MM)
        self.region = region
        if cube_margin_mm is None:
            self._place(Cube.around(np.concatenate([Grid.of(fixed).corners_lps_mm(), region]), direction))
        else:
            self._place(Cube.around(region, direction, cube_margin_mm * self.scale))
        self.field_settings = replace(
            settings.field,
            wavelength_mm=settings.field.wavelength_mm * self.scale,
            code_spacing_mm=max(settings.field.code_spacing_mm * self.scale, _NODES * self.voxel_mm),
        )
        chosen = settings.similarity.window
        self.windows = [chosen or choose_window(i, m) for i, m in zip(self.images, self.masks, strict=True)]
        if fixed_mask is not None and moving_mask is not None:
            grid = self._grid(4.0 * self.scale)
            there = [self._on(grid, mask, way)[:] > 0.5 for way, mask in enumerate((fixed_mask, moving_mask))]
            if not (there[0] & there[1]).any():
                raise NephiError(_APART)

    @property
    def voxel_mm(self) -> float:
        """Side of a voxel of the finer image, if it were a cube."""
        grids = [Grid.of(image) for image in self.images]
        return min(grid.voxel_volume_mm3 ** (1 / grid.dimension) for grid in grids)

    def in_cube(self, cube: Cube) -> Pair:
        """The same pair in another cube: what is compared stays the same, its coordinates change."""
        other = copy.copy(self)
        other._place(cube)
        return other

    def _place(self, cube: Cube) -> None:
        self.cube, inside = cube, cube.to_cube(self.region)
        self._distances: dict[int, sitk.Image] = {}
        margin = 0.0 if self.masks[0] is None else _MARGIN_MM * self.scale / cube.unit_mm
        self.lower = np.maximum(inside.min(0) - margin, -cube.half_extents_cube - margin)
        self.upper = inside.max(0) + margin

    def volumes(self, features: Features, prepare: Callable[..., Tensor], device: torch.device | str) -> VolumePair:
        """Features of the fixed and of the moving image at a scale, on the fixed image's side of the alignment.

        ``prepare``: a similarity's, which makes them.
        """
        fixed, moving = (self._volume(way, features, prepare, torch.device(device)) for way in (0, 1))
        return VolumePair(fixed, moving)

    def _grid(self, spacing_mm: float) -> Grid:
        return self.cube.grid(spacing_mm, self.lower, self.upper)

    def _on(
        self, grid: Grid, image: sitk.Image, way: int, outside: float = 0.0, device: torch.device = _CPU
    ) -> Slices | DeviceSlices:
        """Fixed (way 0) or moving (way 1) image on a working grid, the moving one through the alignment."""
        if device.type != "cpu":
            return DeviceSlices(self._sent(image, device), grid, None if way == 0 else self.affine, outside)
        transform = sitk.Transform(grid.dimension, sitk.sitkIdentity) if way == 0 else self.affine.transform()
        return Slices(image, grid, transform, outside)

    def _sent(self, image: sitk.Image, device: torch.device) -> DeviceImage:
        """The image on a device, sent there once."""
        if id(image) not in self._device_images:
            self._device_images[id(image)] = DeviceImage(image, device)
        return self._device_images[id(image)]

    def _volume(self, way: int, features: Features, prepare: Callable[..., Tensor], device: torch.device) -> Volume:
        grid = self.working_grid(features.spacing_mm)
        scaled, inside, distance = self.seen_on(grid, way, features.outside, device)
        return Volume(
            prepare(scaled, features.dilation, device),
            torch.tensor(self.lower, dtype=torch.float32),
            grid.spacing_mm[0] / self.cube.unit_mm,
            inside,
            self.view(way),
            distance,
        ).to(device)

    def working_grid(self, spacing_mm: float) -> Grid:
        """The grid that both images are compared on: of this spacing, or as fine as makes sense."""
        return self._grid(max(spacing_mm * self.scale, self.settings.similarity.finest * self.voxel_mm))

    def seen_on(self, grid: Grid, way: int, outside: float, device: torch.device = _CPU):
        """The image in its window (0..1) and where its points are drawn, read by slices, and its mask's distance map.

        ``outside``: how far what lies outside the mask is replaced, as ``Features`` says.
        """
        s, image, mask = self.settings.similarity, self.images[way], self.masks[way]
        low, high = self.windows[way]
        scaled = self._on(grid, image, way, low, device)
        scaled.then(lambda values, _: ((values - low) / (high - low)).clip(0, 1))
        if mask is None:
            return scaled, None, None
        inside, distance = self._on(grid, mask, way, device=device), None
        if s.outside_hu is not None and outside and self.trusted and looks_like_ct(image):
            fill, part = (
                float(np.clip((s.outside_hu - low) / (high - low), 0, 1)),
                self._on(grid, mask, way, device=device),
            )
            scaled.then(lambda values, rows: values + outside * (fill - values) * (1 - part[rows]))
        if s.mask_margin_mm or s.boundary_weight:
            image_distance, distance = self._distance(way)
            if s.mask_margin_mm:
                inside = self._on(grid, image_distance, 0, 1e3, device).then(
                    lambda values, _: values <= s.mask_margin_mm * self.scale
                )
        return scaled, inside.then(lambda values, _: values > 0.5), distance

    def _distance(self, way: int) -> tuple[sitk.Image, Volume]:
        """The mask's signed distance on a 3 mm grid: in mm, and cut off, in units of the cut, to be compared."""
        if way not in self._distances:
            grid, mask = self._grid(3.0 * self.scale), self.masks[way]
            assert mask is not None, "only masks have distance maps"
            mask = grid.image(np.asarray(self._on(grid, mask, way)[:] > 0.5, np.uint8))
            self._distances[way] = sitk.SignedMaurerDistanceMap(
                mask, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
            )
        distance, cut = self._distances[way], _DISTANCE_MM * self.scale
        values = torch.from_numpy(sitk.GetArrayFromImage(distance)).float().clamp(-cut, cut) / cut
        lower = torch.tensor(self.lower, dtype=torch.float32)
        return distance, Volume(values[..., None], lower, distance.GetSpacing()[0] / self.cube.unit_mm, None)

    def view(self, way: int):
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
    box = mask_box(mask)[::-1]
    low, high = (np.array([getattr(part, end) for part in box]) for end in ("start", "stop"))
    corners = np.stack(np.meshgrid(*zip(low, high - 1, strict=True), indexing="ij"), -1)
    return grid.to_lps_mm(corners.reshape(-1, grid.dimension))


def _overlap(a: np.ndarray, b: np.ndarray, direction) -> bool:
    axes = np.reshape(direction, (a.shape[-1],) * 2)
    a, b = a @ axes, b @ axes
    return bool(((a.min(0) < b.max(0)) & (b.min(0) < a.max(0))).all())
