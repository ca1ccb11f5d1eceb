"""One pair as a network sees it: both images on one grid in the cube, and what is known of their map."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import SimpleITK as sitk
import torch
from torch import Tensor
from torch.nn import functional as F

from ..fitting.similarity import make_similarity
from ..images.image_pair import Pair
from ..images.volume import Volume, VolumePair
from ..maps.code import points_between
from ..maps.maps import Map
from ..settings import Features, SimilaritySettings

_STRIDE = 3
_CHUNK = 16384
Points = tuple[Tensor, Tensor]  # fixed and moving points_cube (n, d), the moving ones through the alignment


@dataclass
class Sample:
    """Images in their window (0..1), masks and distance maps on a grid in the cube, each (z, y, x) or (y, x).

    ``lower_cube`` (d,) is the grid's first voxel and ``spacing_cube`` its spacing. ``known``: points that
    correspond. ``to_moving_mm`` (d, d): a difference in the cube, times it, is one in the moving image's mm.
    ``spacing_mm``: of the grid, for a region of body size, as in the settings; wider where the images are coarser.
    ``outer``: maps through whose forward one the moving image is seen.
    """

    name: str
    intensities: tuple[Tensor, Tensor]
    masks: tuple[Tensor, Tensor] | None
    distances: tuple[Tensor, Tensor] | None
    half_extents_cube: Tensor
    lower_cube: Tensor
    spacing_cube: float
    similarity: SimilaritySettings
    dilation: int = Features.dilation  # distance in voxels over which features look
    views: tuple | None = None
    known: Points | None = None
    landmarks: Points | None = None
    labels: tuple[Tensor, Tensor] | None = None
    to_moving_mm: Tensor | None = None
    spacing_mm: float | None = None
    outer: Map | None = None
    _volumes: VolumePair | None = field(default=None, repr=False)

    @classmethod
    def of(cls, pair: Pair, features: Features, name: str = "", device="cpu") -> Sample:
        """From the two images in their cube."""
        grid = pair.working_grid(features.spacing_mm)
        device = torch.device(device)
        seen = [pair.seen_on(grid, way, features.outside, device) for way in (0, 1)]

        def dense(slices) -> Tensor:
            return torch.as_tensor(slices[: grid.shape[0]]).contiguous().to(device)

        (fixed, fixed_inside, fixed_distance), (moving, moving_inside, moving_distance) = seen
        masks = distances = None
        if fixed_inside is not None and moving_inside is not None:
            masks = dense(fixed_inside).bool(), dense(moving_inside).bool()
        if fixed_distance is not None and moving_distance is not None:
            near, far = (_resampled(d, grid, pair).to(device) for d in (fixed_distance, moving_distance))
            distances = near, far
        step = pair.affine.matrix @ pair.cube.axes * pair.cube.unit_mm
        return cls(
            name=name,
            intensities=(dense(fixed).float(), dense(moving).float()),
            masks=masks,
            distances=distances,
            half_extents_cube=torch.tensor(pair.cube.half_extents_cube, dtype=torch.float32, device=device),
            lower_cube=torch.tensor(pair.lower, dtype=torch.float32, device=device),
            spacing_cube=grid.spacing_mm[0] / pair.cube.unit_mm,
            similarity=pair.settings.similarity,
            dilation=features.dilation,
            views=tuple(tuple(part.to(device) for part in pair.view(way)) for way in (0, 1)),
            to_moving_mm=torch.tensor(step, dtype=torch.float32, device=device),
            spacing_mm=grid.spacing_mm[0] / pair.scale,
        )

    @property
    def volumes(self) -> VolumePair:
        """The features that are compared, made when first asked for."""
        if self._volumes is None:
            self._volumes = VolumePair(*(self._volume(way) for way in (0, 1)))
        return self._volumes

    def to(self, device) -> Sample:
        """Everything on a device."""

        def moved(value):
            if isinstance(value, tuple):
                return tuple(moved(v) for v in value)
            return value.to(device) if isinstance(value, (Tensor, Map)) else value

        if self.half_extents_cube.device == torch.device(device):
            return self
        values = {f.name: moved(getattr(self, f.name)) for f in fields(self) if f.init}
        return Sample(**{**values, "_volumes": None})

    def _volume(self, way: int) -> Volume:
        image = self.scaled(way)
        features = make_similarity(self.similarity).prepare(image, self.dilation, image.device)
        distance = None
        if self.distances is not None:
            values = self.distances[way].float()[..., None]
            distance = Volume(values, self.lower_cube, self.spacing_cube, None)
        mask = None if self.masks is None else self.masks[way]
        view = None if self.views is None else self.views[way]
        through = self.outer.forward if way == 1 and self.outer is not None else None
        return Volume(features, self.lower_cube, self.spacing_cube, mask, view, distance, through).to(image.device)

    def scaled(self, way: int) -> Tensor:
        """The fixed (0) or the moving (1) image, float32 in its window 0..1."""
        image = self.intensities[way]
        return image.float() / 255 if image.dtype == torch.uint8 else image.float()

    def voxel_centres(self) -> Tensor:
        """(n, d) points_cube of all voxels of the grid."""
        shape = self.intensities[0].shape
        index = torch.stack(torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij"), -1).flip(-1)
        return index.reshape(-1, len(shape)).to(self.lower_cube) * self.spacing_cube + self.lower_cube

    def images(self, size: int) -> Tensor:
        """Both images (2, (size,) size, size) over the cube, fixed first; outside the masks 0."""
        d, out = len(self.half_extents_cube), []
        points = points_between(self.half_extents_cube, [size] * d)
        for way in (0, 1):
            values = self.scaled(way)
            if self.masks is not None:
                values = values * self.masks[way]
            out.append(self.at(values, points).reshape([size] * d))
        return torch.stack(out)

    def moved(self, frames: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Sample:
        """The sample with each image seen through an affine map of the cube: ``matrix @ x + offset`` is looked at.

        Both images through the same map is augmentation; through different ones, another alignment.
        """
        shape, points = self.intensities[0].shape, self.voxel_centres()

        def resampled(tensors, nearest: bool = False):
            if tensors is None:
                return None
            out = []
            for tensor, (matrix, offset) in zip(tensors, frames, strict=True):
                values = self.at(tensor.float(), points @ matrix.T + offset, nearest).reshape(shape)
                out.append(values > 0.5 if tensor.dtype == torch.bool else values.to(tensor.dtype))
            return tuple(out)

        def through(pairs):
            if pairs is None:
                return None
            return tuple((p - b) @ torch.linalg.inv(a).T for p, (a, b) in zip(pairs, frames, strict=True))

        views = self.views
        if views is not None:
            views = tuple((m @ a, m @ b + o, n) for (m, o, n), (a, b) in zip(views, frames, strict=True))
        return replace(
            self,
            intensities=resampled(self.intensities),
            masks=resampled(self.masks),
            distances=resampled(self.distances),
            labels=resampled(self.labels, nearest=True),
            known=through(self.known),
            landmarks=through(self.landmarks),
            to_moving_mm=None if self.to_moving_mm is None else self.to_moving_mm @ frames[1][0],
            views=views,
            _volumes=None,
        )

    def through(self, outer: Map) -> Sample:
        """What maps leave to be found: the moving image, all that belongs to it and the known points through them."""
        points = self._seen_points(outer)

        def seen(pair, nearest: bool = False):
            if pair is None:
                return None
            values = self.at(pair[1].float(), points, nearest).reshape(pair[1].shape)
            return pair[0], values > 0.5 if pair[1].dtype == torch.bool else values.to(pair[1].dtype)

        def known(pair):
            return None if pair is None else (pair[0], outer.solve(pair[1]))

        return replace(
            self,
            intensities=seen(self.intensities),
            masks=seen(self.masks),
            distances=seen(self.distances),
            labels=seen(self.labels, nearest=True),
            known=known(self.known),
            landmarks=known(self.landmarks),
            to_moving_mm=None,
            outer=outer,
            _volumes=None,
        )

    def _seen_points(self, outer: Map) -> Tensor:
        """(n, d): where the forward map takes all voxel centres; linear between every third, for it is smooth."""
        shape = self.intensities[0].shape
        axes = [torch.arange(-(-(n - 1) // _STRIDE) + 1) * _STRIDE for n in shape]
        index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flip(-1).to(self.lower_cube)
        points = (index * self.spacing_cube + self.lower_cube).reshape(-1, len(shape))
        moved = torch.cat([outer.forward(chunk) for chunk in points.split(_CHUNK)])
        moved = moved.reshape(*[len(axis) for axis in axes], -1).movedim(-1, 0)[None]
        size = [(len(axis) - 1) * _STRIDE + 1 for axis in axes]
        moved = F.interpolate(moved, size, mode=("bilinear", "trilinear")[len(shape) - 2], align_corners=True)[0]
        for axis, n in enumerate(shape):
            moved = moved.narrow(axis + 1, 0, n)
        return moved.movedim(0, -1).reshape(-1, len(shape))

    def coarser(self, factor: int, settings: SimilaritySettings, dilation: int = Features.dilation) -> Sample:
        """Everything on a grid of ``factor`` times the spacing, averaged, and compared as ``settings`` say.

        The last voxel of an axis that ``factor`` does not divide is the average of what is left.
        """
        pool = (F.avg_pool2d, F.avg_pool3d)[len(self.half_extents_cube) - 2]

        def averaged(pair):
            if pair is None:
                return None
            means = [pool(t.float()[None, None], factor, ceil_mode=True, count_include_pad=False)[0, 0] for t in pair]
            return tuple(m > 0.5 if t.dtype == torch.bool else m.to(t.dtype) for m, t in zip(means, pair, strict=True))

        return replace(
            self,
            intensities=averaged(tuple(self.scaled(way) for way in (0, 1))),
            masks=averaged(self.masks),
            distances=averaged(self.distances),
            labels=None,
            lower_cube=self.lower_cube + (factor - 1) / 2 * self.spacing_cube,
            spacing_cube=factor * self.spacing_cube,
            spacing_mm=None if self.spacing_mm is None else factor * self.spacing_mm,
            similarity=settings,
            dilation=dilation,
            _volumes=None,
        )

    def swapped(self) -> Sample:
        """Fixed and moving exchanged; errors are then no longer told in mm."""

        def back(pair):
            return None if pair is None else pair[::-1]

        names = ("intensities", "masks", "distances", "views", "known", "landmarks", "labels")
        return replace(self, **{n: back(getattr(self, n)) for n in names}, to_moving_mm=None, _volumes=None)

    def at(self, values: Tensor, points_cube: Tensor, nearest: bool = False) -> Tensor:
        """Values (n,) of a (z, y, x) tensor on the sample's grid at points (n, d); its border holds beyond it."""
        size = torch.tensor(tuple(reversed(values.shape)), device=values.device)
        unit = (points_cube - self.lower_cube) / self.spacing_cube / (size - 1) * 2 - 1
        unit = unit.reshape(1, *[1] * (values.ndim - 1), -1, values.ndim)
        mode = "nearest" if nearest else "bilinear"
        return F.grid_sample(values[None, None], unit, mode, "border", align_corners=True).reshape(-1)


def _resampled(distance: Volume, grid, pair: Pair) -> Tensor:
    """A distance map on its own coarser grid -> on the working grid."""
    image = distance.volume[..., 0].numpy()
    coarse = pair.cube.grid(distance.spacing * pair.cube.unit_mm, pair.lower, pair.upper).image(image)
    return torch.from_numpy(sitk.GetArrayFromImage(grid.resample(coarse, outside=1.0)))
