"""One pair as tensors on one grid in the cube, with known correspondences: the input of networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import SimpleITK as sitk
import torch
from torch import Tensor
from torch.nn import functional as F

from ..both import Both, complete
from ..fitting.similarity import make_similarity
from ..images.image_pair import ImagePair
from ..images.volume import Volume, VolumePair
from ..maps.code import points_between
from ..maps.maps import Map
from ..settings import Features, SimilaritySettings

_STRIDE = 3
_CHUNK = 16384
BOTH = ("intensities", "masks", "distances", "views", "known", "landmarks", "labels")
View = tuple[Tensor, Tensor, Tensor]  # matrix, offset and size that take cube points to an image's voxel index
Frame = tuple[Tensor, Tensor]  # matrix and offset of an affine map of the cube


@dataclass(frozen=True, eq=False)
class PairTensors:
    """Images in their window (0..1), masks and distance maps on a grid in the cube, each (z, y, x) or (y, x).

    ``lower_cube`` (d,) is the grid's first voxel and ``spacing_cube`` its spacing. ``known`` and ``landmarks``:
    points_cube (n, d) that correspond, the moving ones on the fixed image's side of the alignment.
    ``to_moving_mm`` (d, d): a difference in the cube, times it, is one in the moving image's mm.
    ``spacing_mm``: of the grid, for a region of body size, as in the settings; wider where the images are coarser.
    ``outer``: maps through whose forward one the moving image is seen. Immutable: its methods return new ones.
    """

    name: str
    intensities: Both[Tensor]
    masks: Both[Tensor] | None
    distances: Both[Tensor] | None
    half_extents_cube: Tensor
    lower_cube: Tensor
    spacing_cube: float
    similarity: SimilaritySettings
    dilation: int = Features.dilation  # distance in voxels over which features look
    views: Both[View] | None = None
    known: Both[Tensor] | None = None
    landmarks: Both[Tensor] | None = None
    labels: Both[Tensor] | None = None
    to_moving_mm: Tensor | None = None
    spacing_mm: float | None = None
    outer: Map | None = None

    def __post_init__(self):
        for name in BOTH:  # plain tuples are welcome, too
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, Both(*value))

    @classmethod
    def of(cls, pair: ImagePair, features: Features, name: str = "", device="cpu") -> PairTensors:
        """From the two images in their cube, on the grid of these features."""
        grid = pair.working_grid(features.spacing_mm)
        device = torch.device(device)
        images, inside, distances = (Both(*of_both) for of_both in zip(
            *(pair.seen_on(grid, way, features.outside, device) for way in (0, 1)), strict=True))  # fmt: skip

        def dense(slices) -> Tensor:
            return torch.as_tensor(slices[: grid.shape[0]]).contiguous().to(device)

        given, far = complete(*inside), complete(*distances)
        step = pair.affine.matrix @ pair.cube.axes * pair.cube.unit_mm
        return cls(
            name=name,
            intensities=images.map(lambda image: dense(image).float()),
            masks=given and given.map(lambda mask: dense(mask).bool()),
            distances=far and far.map(lambda distance: _resampled(distance, grid, pair)),
            half_extents_cube=torch.tensor(pair.cube.half_extents_cube, dtype=torch.float32),
            lower_cube=torch.tensor(pair.lower_cube, dtype=torch.float32),
            spacing_cube=grid.spacing_mm[0] / pair.cube.unit_mm,
            similarity=pair.similarity,
            dilation=features.dilation,
            views=pair.views,
            to_moving_mm=torch.tensor(step, dtype=torch.float32),
            spacing_mm=grid.spacing_mm[0] / pair.scale,
        ).to(device)

    @cached_property
    def volumes(self) -> VolumePair:
        """The features that are compared, computed when first needed."""
        return VolumePair(self._fixed_volume, self._volume(1))

    @cached_property
    def _fixed_volume(self) -> Volume:
        return self._volume(0)

    def _volume(self, way: int) -> Volume:
        image, distance = self.scaled[way], None
        if self.distances is not None:
            values = self.distances[way].float()[..., None]
            distance = Volume(values, self.lower_cube, self.spacing_cube, None)
        return Volume(
            make_similarity(self.similarity).prepare(image, self.dilation, image.device),
            self.lower_cube,
            self.spacing_cube,
            None if self.masks is None else self.masks[way],
            None if self.views is None else self.views[way],
            distance,
            self.outer.forward if way == 1 and self.outer is not None else None,
        ).to(image.device)

    @property
    def scaled(self) -> Both[Tensor]:
        """Both images, float32 in their windows 0..1."""
        return self.intensities.map(lambda image: image.float() / 255 if image.dtype == torch.uint8 else image.float())

    def to(self, device) -> PairTensors:
        """Everything on a device."""
        if self.half_extents_cube.device == torch.device(device):
            return self

        def moved(value):
            if isinstance(value, tuple):
                return tuple(moved(v) for v in value)
            return value.to(device) if isinstance(value, (Tensor, Map)) else value

        return PairTensors(**{f.name: moved(getattr(self, f.name)) for f in fields(self)})

    def voxel_centres(self, within: Tensor | None = None, most: int | None = None) -> Tensor:
        """(n, d) points_cube of the voxels of the grid, or of a mask; if there are too many, evenly spread."""
        shape, device = self.intensities[0].shape, self.lower_cube.device
        flat = torch.arange(math.prod(shape), device=device) if within is None else within.reshape(-1).nonzero()[:, 0]
        if most is not None and len(flat) > most:
            flat = flat[torch.linspace(0, len(flat) - 1, most, device=device).long()]
        index = []
        for extent in reversed(shape):
            index.append((flat % extent).to(self.lower_cube))
            flat = flat // extent
        return torch.stack(index, -1).mul_(self.spacing_cube).add_(self.lower_cube)

    def images(self, size: int) -> Tensor:
        """Both images (2, (size,) size, size) over the cube, fixed first; outside the masks 0."""
        shape = [size] * len(self.half_extents_cube)
        points = points_between(self.half_extents_cube, shape)
        images = self.scaled if self.masks is None else self.scaled.map(torch.mul, self.masks)
        return torch.stack([self.at(image, points).reshape(shape) for image in images])

    def moved(self, frames: Both[Frame]) -> PairTensors:
        """The pair with each image resampled through an affine map of the cube: it is read at ``matrix @ x + offset``.

        The same map for both images is augmentation; different maps are another alignment.
        """
        shape, points = self.intensities[0].shape, self.voxel_centres()

        def resampled(tensor: Tensor, frame: Frame, nearest: bool = False) -> Tensor:
            matrix, offset = frame
            return _like(tensor, self.at(tensor.float(), points @ matrix.T + offset, nearest).reshape(shape))

        def region(labels: Tensor, frame: Frame) -> Tensor:
            return resampled(labels, frame, nearest=True)

        def back(known: Tensor, frame: Frame) -> Tensor:
            matrix, offset = frame
            return (known - offset) @ torch.linalg.inv(matrix).T

        def viewed(view: View, frame: Frame) -> View:
            (to_index, first, size), (matrix, offset) = view, frame
            return to_index @ matrix, to_index @ offset + first, size

        return replace(
            self,
            intensities=self.intensities.map(resampled, frames),
            masks=self.masks and self.masks.map(resampled, frames),
            distances=self.distances and self.distances.map(resampled, frames),
            labels=self.labels and self.labels.map(region, frames),
            known=self.known and self.known.map(back, frames),
            landmarks=self.landmarks and self.landmarks.map(back, frames),
            to_moving_mm=None if self.to_moving_mm is None else self.to_moving_mm @ frames.moving[0],
            views=self.views and self.views.map(viewed, frames),
        )

    def through(self, outer: Map) -> PairTensors:
        """The residual pair: moving image, mask, distances, labels and known points warped by ``outer``."""
        units = self._seen_units(outer)
        smooth = [of for of in (self.intensities, self.masks, self.distances) if of is not None]
        # all of them at once: where to read, and with which weights, is the same
        values = iter(_read(torch.stack([of.moving.float() for of in smooth]), units))

        def seen(of: Both[Tensor], values: Tensor) -> Both[Tensor]:
            return Both(of.fixed, _like(of.moving, values))

        def region(of: Both[Tensor]) -> Both[Tensor]:
            return seen(of, _read(of.moving.float()[None], units, nearest=True)[0])

        def known(of: Both[Tensor]) -> Both[Tensor]:
            return Both(of.fixed, outer.solve(of.moving))

        rest = replace(
            self,
            intensities=seen(self.intensities, next(values)),
            masks=self.masks and seen(self.masks, next(values)),
            distances=self.distances and seen(self.distances, next(values)),
            labels=self.labels and region(self.labels),
            known=self.known and known(self.known),
            landmarks=self.landmarks and known(self.landmarks),
            to_moving_mm=None,
            outer=outer,
        )
        rest.__dict__["_fixed_volume"] = self._fixed_volume  # the fixed image stays: its features are not made again
        return rest

    def _seen_units(self, outer: Map) -> Tensor:
        """((z,) y, x, d): where the forward map takes all voxel centres, as ``_units``; linear between every third, for
        it is smooth."""
        shape = self.intensities[0].shape
        axes = [torch.arange(-(-(n - 1) // _STRIDE) + 1) * _STRIDE for n in shape]
        index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flip(-1).to(self.lower_cube)
        points = (index * self.spacing_cube + self.lower_cube).reshape(-1, len(shape))
        moved = torch.cat([self._units(outer.forward(chunk), shape) for chunk in points.split(_CHUNK)])
        moved = moved.reshape(*[len(axis) for axis in axes], -1).movedim(-1, 0)[None]
        size = [(len(axis) - 1) * _STRIDE + 1 for axis in axes]
        moved = F.interpolate(moved, size, mode=("bilinear", "trilinear")[len(shape) - 2], align_corners=True)[0]
        for axis, n in enumerate(shape):
            moved = moved.narrow(axis + 1, 0, n)
        return moved.movedim(0, -1)

    def downsampled(self, factor: int, settings: SimilaritySettings, dilation: int = Features.dilation) -> PairTensors:
        """The pair on a grid of ``factor`` times the spacing, averaged, with the features of ``settings``.

        If ``factor`` does not divide an axis, its last voxel is the average of the rest.
        """
        pool = (F.avg_pool2d, F.avg_pool3d)[len(self.half_extents_cube) - 2]

        def averaged(tensor: Tensor) -> Tensor:
            mean = pool(tensor.float()[None, None], factor, ceil_mode=True, count_include_pad=False)[0, 0]
            return _like(tensor, mean)

        return replace(
            self,
            intensities=self.scaled.map(averaged),
            masks=self.masks and self.masks.map(averaged),
            distances=self.distances and self.distances.map(averaged),
            labels=None,
            lower_cube=self.lower_cube + (factor - 1) / 2 * self.spacing_cube,
            spacing_cube=factor * self.spacing_cube,
            spacing_mm=None if self.spacing_mm is None else factor * self.spacing_mm,
            similarity=settings,
            dilation=dilation,
        )

    def swapped(self) -> PairTensors:
        """Fixed and moving exchanged; errors are then no longer known in mm."""
        exchanged = {name: value.swapped for name in BOTH if (value := getattr(self, name)) is not None}
        return replace(self, **exchanged, to_moving_mm=None)

    def at(self, values: Tensor, points_cube: Tensor, nearest: bool = False) -> Tensor:
        """Values (n,) of a (z, y, x) tensor on the pair's grid at points (n, d); constant beyond its border."""
        units = self._units(points_cube, values.shape).reshape(*[1] * (values.ndim - 1), -1, values.ndim)
        return _read(values[None], units, nearest).reshape(-1)

    def _units(self, points_cube: Tensor, shape: Sequence[int]) -> Tensor:
        """Points (n, d) in units in which the first voxel of a grid of this shape is at -1 and the last one at 1."""
        last = torch.tensor(tuple(reversed(shape)), device=points_cube.device) - 1
        return (points_cube - self.lower_cube) / self.spacing_cube / last * 2 - 1


def _read(values: Tensor, units: Tensor, nearest: bool = False) -> Tensor:
    """Values (c, (z,) y, x) of c images at positions (..., d), as ``_units``: (c, ...); constant beyond the border."""
    mode = "nearest" if nearest else "bilinear"
    return F.grid_sample(values[None], units[None], mode, "border", align_corners=True)[0]


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    """Interpolated values in the tensor's type; of a mask, cut at one half."""
    return values > 0.5 if tensor.dtype == torch.bool else values.to(tensor.dtype)


def _resampled(distance: Volume, grid, pair: ImagePair) -> Tensor:
    """A distance map on its own coarser grid -> on the working grid."""
    image = distance.volume[..., 0].numpy()
    coarse = pair.covering_grid(distance.spacing * pair.cube.unit_mm).image(image)
    return torch.from_numpy(sitk.GetArrayFromImage(grid.resample(coarse, outside=1.0)))
