"""Both images in the registration cube: the region worked on, and what is compared in it at a scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..both import ROLES, Both, complete
from ..device import has_doubles
from ..errors import NephiError
from ..settings import BODY_MM, Features, FieldSettings, SimilaritySettings
from ..space.affine import Affine
from ..space.cube import Cube, overlap
from ..space.grid import Grid
from .coarse import grown
from .hidden import Hidden, beyond
from .hounsfield import background, looks_like_ct
from .masks import choose_window, region_lps_mm, signed_distance_mm
from .resample import DeviceImage, DeviceSlices
from .slices import Slices
from .volume import Volume, VolumePair

# voxels between two nodes of the local code, at least: what is finer follows the noise; of CTs, where borders are
# smooth and tell little of motion along them
_NODES, _CT_NODES = 4.0, 6.0
_MARGIN_MM = 10.0  # of the working grid around the masks
_AROUND_MM = 4.0  # what an image shows: where points are drawn, so that its border counts
_BETWEEN = 0.4  # of the window, in the place of what is excluded or lies on the other side of a border
_EDGE_MM = 4.0  # from the masks' border, within: what lies around is compared up to there
_DISTANCE_MM = 12.0  # where the masks' distance maps are cut off
_CPU = torch.device("cpu")
_NEITHER: Both[sitk.Image | None] = Both(None, None)
_MASKS_APART = "the masks do not overlap after alignment; use --align moments or centres"
_IMAGES_APART = "the images do not overlap after alignment; use --align centres or give masks"


@dataclass(frozen=True, eq=False)
class ImagePair:
    """Both images in the registration cube, and their features on working grids; immutable.

    ``cube``: where the maps live. ``region_lps_mm`` (n, d): corners of what is compared, on the fixed image's side of
    the alignment. ``scale``: of all lengths, below 1 for small bodies. ``windows``: intensities that become 0 and 1.
    ``trusted``: the masks were given, not detected, so that what lies outside them may be left out. ``excluded``: masks
    of what must not count. ``around``: compared around the masks: no feature sees what lies within, and no point is
    drawn there.
    """

    images: Both[sitk.Image]
    masks: Both[sitk.Image | None]
    affine: Affine
    similarity: SimilaritySettings
    trusted: bool
    cube: Cube
    region_lps_mm: np.ndarray
    scale: float
    windows: Both[tuple[float, float]]
    excluded: Both[sitk.Image | None] = _NEITHER
    around: bool = False
    _on_device: dict[int, DeviceImage] = field(default_factory=dict, repr=False)
    _distances: dict[int, sitk.Image] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        images: Both[sitk.Image],
        masks: Both[sitk.Image | None],
        affine: Affine,
        similarity: SimilaritySettings,
        trusted: bool = True,
        cube_margin_mm: float | None = None,
        excluded: Both[sitk.Image | None] = _NEITHER,
    ) -> ImagePair:
        """The pair, aligned by ``affine``. Raises NephiError where the images, or their masks, are apart after it.

        ``cube_margin_mm``: the cube is the masks' box and this much around it, so that lungs fill it alike
        whatever the field of view; None: it covers the whole fixed image.
        """
        grid, given = Grid.of(images.fixed), complete(*masks)
        fixed, moving = images.map(region_lps_mm, masks)
        moving = affine.inverse()(moving)
        if not overlap(fixed, moving, grid.direction):
            raise NephiError(_MASKS_APART if given else _IMAGES_APART)
        region = np.concatenate([fixed, moving])
        cube = Cube.around(region, grid.direction)
        scale = min(1.0, 2 * cube.unit_mm / BODY_MM)
        if cube_margin_mm is None:
            cube = Cube.around(np.concatenate([grid.corners_lps_mm(), region]), grid.direction)
        else:
            cube = Cube.around(region, grid.direction, cube_margin_mm * scale)
        windows = _windows(images, masks, excluded, similarity)
        pair = cls(images, masks, affine, similarity, trusted, cube, region, scale, windows, excluded)
        if given and not pair._masks_meet(given):
            raise NephiError(_MASKS_APART)
        return pair

    def compared_by(self, similarity: SimilaritySettings) -> ImagePair:
        """The same pair with another similarity, and its window if it has one."""
        windows = _windows(self.images, self.masks, self.excluded, similarity)
        return replace(self, similarity=similarity, windows=windows)

    def in_cube(self, cube: Cube) -> ImagePair:
        """The same pair in another cube: what is compared stays the same, its coordinates change."""
        return replace(self, cube=cube, _distances={})

    @property
    def voxel_mm(self) -> float:
        """Side of a voxel of the finer image, if it were a cube."""
        return min(grid.voxel_volume_mm3 ** (1 / grid.dimension) for grid in self.images.map(Grid.of))

    def fitted(self, field: FieldSettings) -> FieldSettings:
        """The settings of a field of this pair, its lengths scaled and its nodes as far apart as the voxels allow."""
        field = field.scaled(self.scale)
        voxels = _CT_NODES if all(self.images.map(looks_like_ct)) else _NODES
        return replace(field, code_spacing_mm=max(field.code_spacing_mm, voxels * self.voxel_mm))

    @cached_property
    def compared_cube(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner (d,) of what is compared, and of the working grids."""
        inside = self.cube.to_cube(self.region_lps_mm)
        around_mm = max(_MARGIN_MM, self.similarity.mask_margin_mm) * self.scale
        margin = 0.0 if self.masks.fixed is None else around_mm / self.cube.unit_mm
        return np.maximum(inside.min(0) - margin, -self.cube.half_extents_cube - margin), inside.max(0) + margin

    @property
    def lower_cube(self) -> np.ndarray:
        """(d,): the first voxel of all working grids."""
        return self.compared_cube[0]

    def volumes(
        self,
        features: Features,
        prepare: Callable[..., Tensor],
        device: torch.device | str,
        reach: int = 0,
        drawn: tuple[bool, bool] = (True, True),
        means: bool = False,
    ) -> VolumePair:
        """Features of the fixed and of the moving image at a scale, on the fixed image's side of the alignment.

        ``prepare``: a similarity's, which makes them; ``reach``: voxels over which they look; ``means``: whether they
        are weighted means, which are then made of what counts alone; ``drawn``: whether points are drawn of either
        image, else its mask need not be seen. Raises NephiError where what is excluded leaves nothing to compare.
        """
        on = torch.device(device)
        return VolumePair(*(self._volume(way, features, prepare, on, reach, drawn[way], means) for way in (0, 1)))

    def both_see(self, grid: Grid) -> np.ndarray:
        """(z, y, x) bool: which voxels of a grid over what is compared lie within both images and count in both."""
        seen = np.ones(grid.shape, bool)
        for way in (0, 1):
            hidden = self._hidden(grid, way)
            if hidden.beyond is not None:
                seen &= ~hidden.beyond.numpy()
            if hidden.excluded is not None:
                seen &= ~grown(hidden.excluded, 1).numpy()
        return seen

    def cube_grid(self, size: Sequence[int]) -> Grid:
        """The grid of this many voxels along x, y (, z) that covers the cube, borders included."""
        spacing = [2 * half / (n - 1) for half, n in zip(self.cube.half_sides_mm, size, strict=True)]
        lower = self.cube.to_lps_mm(-self.cube.half_extents_cube)
        return Grid(tuple(size), tuple(spacing), tuple(lower.tolist()), self.cube.direction)

    def counted_on(self, grid: Grid, reach: int, ends: int) -> Both[np.ndarray]:
        """(z, y, x) of 0 to 1: what counts of each image, in its field of view and its mask.

        Nothing counts that sees what is excluded, looking over ``reach`` voxels, or, over ``ends``, beyond the image.
        """
        parts = []
        for way, mask in enumerate(self.masks):
            part = np.ones(grid.shape, np.float32)
            if mask is not None:
                part *= np.asarray(self._on(grid, sitk.Cast(mask, sitk.sitkFloat32), way)[:])
            hidden = self._hidden(grid, way).seen_over(reach, ends)
            parts.append(part if hidden is None else part * ~hidden.numpy())
        return Both(*parts)

    def covering_grid(self, spacing_mm: float) -> Grid:
        """The grid of this spacing over what is compared."""
        return self.cube.grid(spacing_mm, *self.compared_cube)

    def _masks_meet(self, masks: Both[sitk.Image]) -> bool:
        """Whether a point lies in both masks, on a grid of 4 mm."""
        grid = self.covering_grid(4.0 * self.scale)
        fixed, moving = (self._on(grid, mask, way)[:] > 0.5 for way, mask in enumerate(masks))
        return bool((fixed & moving).any())

    def _on(
        self, grid: Grid, image: sitk.Image, way: int, outside: float = 0.0, device: torch.device = _CPU
    ) -> Slices | DeviceSlices:
        """Fixed (way 0) or moving (way 1) image on a working grid, the moving one through the alignment."""
        if device.type != "cpu" and has_doubles(device):  # places need them
            return DeviceSlices(self._sent(image, device), grid, None if way == 0 else self.affine, outside)
        transform = sitk.Transform(grid.dimension, sitk.sitkIdentity) if way == 0 else self.affine.transform()
        return Slices(image, grid, transform, outside)

    def _sent(self, image: sitk.Image, device: torch.device) -> DeviceImage:
        """The image on a device, sent there once."""
        if id(image) not in self._on_device:
            self._on_device[id(image)] = DeviceImage(image, device)
        return self._on_device[id(image)]

    def _volume(
        self,
        way: int,
        features: Features,
        prepare: Callable[..., Tensor],
        device: torch.device,
        reach: int,
        draws: bool,
        means: bool,
    ) -> Volume:
        grid = self.working_grid(features.spacing_mm)
        scaled, hidden = self._scaled(grid, way, features.outside, device), self._hidden(grid, way)
        inside, distance = self._drawn_on(grid, way, device) if draws or hidden else (None, None)
        drawn = None if inside is None else torch.as_tensor(inside[:]).cpu()
        drawn, uncounted = hidden.without(drawn, grid, reach)
        make = partial(prepare, dilation=features.dilation, device=device)
        return Volume(
            hidden.features(make, scaled, device) if means and hidden else make(scaled),
            torch.tensor(self.lower_cube, dtype=torch.float32),
            grid.spacing_mm[0] / self.cube.unit_mm,
            drawn,
            self._view(way),
            distance,
            excluded=uncounted,
        ).to(device)

    def _hidden(self, grid: Grid, way: int) -> Hidden:
        """What must not count of an image on a working grid."""
        mask, affine = self.excluded[way], None if way == 0 else self.affine
        excluded = None
        if mask is not None:  # means of bytes would be rounded
            excluded = torch.as_tensor(self._on(grid, sitk.Cast(mask, sitk.sitkFloat32), way)[:] > 0)
        return Hidden(ROLES[way], excluded, beyond(Grid.of(self.images[way]), grid, affine))

    def working_grid(self, spacing_mm: float) -> Grid:
        """The grid that both images are compared on: of this spacing, or as fine as makes sense."""
        return self.covering_grid(max(spacing_mm * self.scale, self.similarity.finest * self.voxel_mm))

    def seen_on(self, grid: Grid, way: int, outside: float, device: torch.device = _CPU):
        """The image in its window (0..1) and where its points are drawn, read by slices, and its mask's distance map.

        Without a mask points are drawn everywhere (None), or around all but the image's background.

        ``outside``: how far what lies outside the mask is replaced, as ``Features`` says.
        """
        return self._scaled(grid, way, outside, device), *self._drawn_on(grid, way, device)

    def _scaled(self, grid: Grid, way: int, outside: float, device: torch.device) -> Slices | DeviceSlices:
        """The image in its window, 0 to 1, with what lies outside the mask replaced as far as is said."""
        s, image, mask = self.similarity, self.images[way], self.masks[way]
        low, high = self.windows[way]
        scaled = self._windowed(grid, way, device)
        if self.around:
            assert mask is not None, "what lies around is around masks"
            part = self._on(grid, mask, way, device=device)
            return scaled.then(lambda values, rows: values + (_BETWEEN - values) * part[rows])
        if mask is not None and s.outside_hu is not None and outside and self.trusted and looks_like_ct(image):
            fill, part = (
                float(np.clip((s.outside_hu - low) / (high - low), 0, 1)),
                self._on(grid, mask, way, device=device),
            )
            scaled.then(lambda values, rows: values + outside * (fill - values) * (1 - part[rows]))
        return scaled

    def _drawn_on(self, grid: Grid, way: int, device: torch.device):
        """Where points are drawn, read by slices, and the mask's distance map, as ``seen_on`` says."""
        s, mask = self.similarity, self.masks[way]
        if mask is None:
            return self._shown(grid, way), None
        inside, distance = self._on(grid, mask, way, device=device), None
        if s.mask_margin_mm or s.boundary_weight:
            image_distance, distance = self._distance(way)
            if s.mask_margin_mm:
                margin = s.mask_margin_mm * self.scale
                least = -_EDGE_MM * self.scale if self.around else -np.inf
                inside = self._on(grid, image_distance, 0, 1e3, device).then(
                    lambda values, _: (values <= margin) & (values >= least)
                )
        return inside.then(lambda values, _: values > 0.5), distance

    def _windowed(self, grid: Grid, way: int, device: torch.device) -> Slices | DeviceSlices:
        low, high = self.windows[way]
        scaled = self._on(grid, self.images[way], way, low, device)
        scaled = scaled.then(lambda values, _: ((values - low) / (high - low)).clip(0, 1))
        if self.excluded[way] is None:
            return scaled
        part = self._on(grid, sitk.Cast(self.excluded[way], sitk.sitkFloat32), way, device=device)

        def replaced(values, rows):
            counts = part[rows] == 0
            return values * counts + (0 * values + _BETWEEN) * ~counts  # of the values' own precision

        return scaled.then(replaced)

    def _shown(self, grid: Grid, way: int) -> Tensor | None:
        """(z, y, x) bool: around what an image shows, where a value that stands for nothing fills much of it."""
        image = self.images[way]
        value = background(image)
        if value is None:
            return None
        part = torch.from_numpy(self._on(grid, sitk.Cast(image != value, sitk.sitkFloat32), way)[:])
        return grown(part, round(_AROUND_MM * self.scale / grid.spacing_mm[0]))

    def _distance(self, way: int) -> tuple[sitk.Image, Volume]:
        """The mask's signed distance on a 3 mm grid: in mm, and cut off, in units of the cut, to be compared."""
        if way not in self._distances:
            grid, mask = self.covering_grid(3.0 * self.scale), self.masks[way]
            assert mask is not None, "only masks have distance maps"
            mask = grid.image(np.asarray(self._on(grid, mask, way)[:] > 0.5, np.uint8))
            self._distances[way] = signed_distance_mm(mask)
        distance, cut = self._distances[way], _DISTANCE_MM * self.scale
        values = torch.from_numpy(sitk.GetArrayFromImage(distance)).float().clamp(-cut, cut) / cut
        lower = torch.tensor(self.lower_cube, dtype=torch.float32)
        return distance, Volume(values[..., None], lower, distance.GetSpacing()[0] / self.cube.unit_mm, None)

    @property
    def views(self) -> Both[tuple[Tensor, Tensor, Tensor]]:
        """Matrix, offset and size that take cube points to each image's voxel index."""
        return Both(self._view(0), self._view(1))

    def _view(self, way: int) -> tuple[Tensor, Tensor, Tensor]:
        grid = Grid.of(self.images[way])
        d = grid.dimension

        def index(points_cube):
            points = self.cube.to_lps_mm(points_cube)
            return grid.to_index(points if way == 0 else self.affine(points))

        offset = index(np.zeros(d))
        matrix = (index(np.eye(d)) - offset).T
        as_tensor = partial(torch.tensor, dtype=torch.float32)
        return as_tensor(matrix), as_tensor(offset), as_tensor(np.asarray(grid.size))


def _counted(image: sitk.Image, mask: sitk.Image | None, excluded: sitk.Image | None) -> sitk.Image | None:
    """The mask without what is excluded; None where neither is given."""
    if excluded is None:
        return mask
    counts = excluded == 0
    return counts if mask is None else counts * sitk.Cast(mask != 0, counts.GetPixelID())


def _windows(
    images: Both[sitk.Image],
    masks: Both[sitk.Image | None],
    excluded: Both[sitk.Image | None],
    similarity: SimilaritySettings,
) -> Both[tuple[float, float]]:
    counted = images.map(_counted, masks, excluded)
    return images.map(lambda image, mask: similarity.window or choose_window(image, mask), counted)
