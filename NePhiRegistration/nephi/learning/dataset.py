"""Training data: lists of pairs of files, prepared once and cached, or shapes drawn on demand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import SimpleITK as sitk
import torch

from ..both import ROLES, Both, complete
from ..errors import NephiError, notice
from ..files.cases import Case, fingerprints, read_pairs
from ..files.image import read_image
from ..files.landmarks import read_landmarks
from ..files.masks import read_mask
from ..files.regions import read_regions
from ..files.tensors import read_tensors, write_tensors
from ..images.align import align
from ..images.image_pair import ImagePair
from ..journal import recover
from ..synthetic.shapes import TRAINING, VALIDATION, shape_pairs
from .pair_tensors import BOTH, PairTensors, View
from .settings import ModelSettings

SHAPES = ("shapes-solid", "shapes-hollow")  # names of generated data, given instead of a list of pairs


class Dataset(Protocol):
    """What is trained on: pairs by their number, as a network sees them."""

    def __len__(self) -> int: ...

    def __getitem__(self, k: int) -> PairTensors: ...


class Shapes:
    """Pairs of triangles and circles; the labels to compare are the shapes themselves."""

    def __init__(self, hollow: bool, settings: ModelSettings, validation: bool, count: int | None = None):
        many, seed = VALIDATION if validation else TRAINING
        self.fixed, self.moving = shape_pairs(count or many, seed, hollow)
        self.settings = settings

    def __len__(self) -> int:
        return len(self.fixed)

    def __getitem__(self, k: int) -> PairTensors:
        fixed, moving = (torch.from_numpy(stack[k]) for stack in (self.fixed, self.moving))
        d, side = 2, fixed.shape[0]
        return PairTensors(
            name=f"shapes {k}",
            intensities=Both(fixed, moving),
            masks=None,
            distances=None,
            half_extents_cube=torch.ones(d),
            lower_cube=-torch.ones(d),
            spacing_cube=2 / (side - 1),
            similarity=self.settings.similarity,
            labels=Both(fixed.float() / 255, moving.float() / 255),
        )


class Pairs:
    """The pairs of a list of files, each preprocessed once and saved in ``cache``.

    Pairs that can't be preprocessed are reported through ``tell`` and skipped. Raises NephiError if none is left.
    """

    def __init__(self, source: str | Path, settings: ModelSettings, cache: Path, tell: Callable[[str], None] = print):
        self.files: list[tuple[Case, Path]] = []
        self.cache = cache
        cache.mkdir(parents=True, exist_ok=True)
        recover(cache)
        pairs = read_pairs(source)
        for pair in pairs:
            try:
                path = _place(pair, settings, cache)
                sample = None if path.is_file() else prepare(pair, settings)
            except (NephiError, OSError, RuntimeError) as error:
                tell(f"{pair.name} is skipped: {error}")
                continue
            if sample is not None:  # an unwritable cache is not a fault of the pair
                _keep(sample, path)
            self.files.append((pair, path))
        if not self.files:
            raise NephiError(f"{source}: none of its {len(pairs)} pairs can be read")
        self.settings = settings

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, k: int) -> PairTensors:
        pair, path = self.files[k]
        try:
            return _load(path, self.settings)
        except NephiError as error:  # which names the file
            notice(f"{pair.name} is preprocessed again: {error}")
            return _load(_kept(pair, self.settings, self.cache), self.settings)


def open_data(
    name: str, settings: ModelSettings, cache: Path, validation: bool, tell: Callable[[str], None] = print
) -> Dataset:
    """``shapes-solid``, ``shapes-hollow``, or a list of pairs as for ``nephi batch``; raises NephiError."""
    if name in SHAPES:
        if settings.dimension != 2:
            raise NephiError(f"{name} is 2D, but the model is {settings.dimension}D: set model.dimension to 2")
        return Shapes(name == SHAPES[1], settings, validation)
    return Pairs(name, settings, cache, tell)


def tensors_of(
    fixed: sitk.Image,
    moving: sitk.Image,
    settings: ModelSettings,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    name: str = "",
) -> PairTensors:
    """Two images as a model sees them: aligned, resampled and in their window. For data sets of one's own.

    Raises NephiError for images that cannot be aligned or do not overlap.
    """
    pair = aligned_pair(Both(fixed, moving), Both(fixed_mask, moving_mask), settings)
    return PairTensors.of(pair, settings.features, name)


def aligned_pair(images: Both[sitk.Image], masks: Both[sitk.Image | None], settings: ModelSettings) -> ImagePair:
    """Two images in the cube that a model works in; raises NephiError as ``tensors_of``."""
    affine = align(images, masks, settings.align).affine
    return ImagePair.of(images, masks, affine, settings.similarity, cube_margin_mm=settings.cube_margin_mm)


# ---- preparing ------------------------------------------------------------------------------------------


def prepare(pair: Case, settings: ModelSettings) -> PairTensors:
    """Reads, aligns and resamples one pair of files; raises NephiError for unusable files."""
    files = pair.files
    for role in ROLES:
        if role not in files:
            raise NephiError(f"no {role} image is given")
    images = ROLES.map(lambda role: read_image(files[role], f"{role} image", pair.series))
    if any(image.GetDimension() != settings.dimension for image in images):
        kinds = " and ".join(f"{image.GetDimension()}D" for image in images)
        raise NephiError(f"the images are {kinds}, the model {settings.dimension}D")

    def paths(kind: str) -> Both[Path | None]:
        return ROLES.map(lambda role: files.get(f"{role}_{kind}"))

    masks = paths("mask").map(
        lambda path, image, role: None if path is None else read_mask(path, image, f"{role} mask"), images, ROLES
    )
    seen = aligned_pair(images, masks, settings)
    affine, sample = seen.affine, PairTensors.of(seen, settings.features, pair.name)

    def points(kind: str) -> Both[torch.Tensor] | None:
        given = complete(*paths(kind))
        if given is None:
            return None
        both = given.map(read_landmarks, images)
        if both.fixed.shape != both.moving.shape:
            raise NephiError(
                f"{len(both.fixed)} fixed and {len(both.moving)} moving {kind}: they must match row by row"
            )
        aligned = Both(both.fixed, affine.inverse()(both.moving))
        return aligned.map(lambda p: torch.tensor(seen.cube.to_cube(p), dtype=torch.float32))

    def labels() -> Both[torch.Tensor] | None:
        given = complete(*paths("labels"))
        if given is None:
            return None
        maps = given.map(lambda path, image, role: read_regions(path, image, f"{role} labels"), images, ROLES)
        grid = seen.working_grid(settings.features.spacing_mm)
        on_grid = maps.map(lambda m, t: grid.resample(m, t, sitk.sitkNearestNeighbor), Both(None, affine.transform()))
        return on_grid.map(lambda m: torch.from_numpy(sitk.GetArrayFromImage(m).astype(np.int16)))

    return replace(sample, known=points("points"), landmarks=points("landmarks"), labels=labels())


_SINGLE = ("half_extents_cube", "lower_cube", "to_moving_mm")
_HALF = torch.float16


def _place(pair: Case, settings: ModelSettings, cache: Path) -> Path:
    """The file in ``cache`` for the preprocessed pair: it depends on the files, the alignment and the model."""
    made_of = {
        "format": 2,
        "inputs": fingerprints(pair.files, False, settings.align, roles=tuple(pair.files), series=pair.series),
        "similarity": asdict(settings.similarity),
        "features": asdict(settings.features),
        "margin": settings.cube_margin_mm,
        "align": settings.align,
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return cache / f"{pair.name}-{key}.safetensors"


def _keep(sample: PairTensors, path: Path) -> None:
    """Write a prepared pair; raises NephiError where that is not possible."""
    bytes_ = sample.scaled.map(lambda image: (image * 255).round().to(torch.uint8))  # the noise is larger
    halves = sample.distances and sample.distances.map(lambda distance: distance.to(_HALF))
    sample = replace(sample, intensities=bytes_, distances=halves)
    tensors = {name: getattr(sample, name) for name in _SINGLE}
    for name in BOTH:
        for way, value in enumerate(getattr(sample, name) or ()):
            parts = {f".{part}": tensor for part, tensor in enumerate(value)} if name == "views" else {"": value}
            tensors.update({f"{name}.{way}{part}": tensor.contiguous() for part, tensor in parts.items()})
    for name in ("spacing_cube", "spacing_mm"):
        tensors[name] = torch.tensor(getattr(sample, name), dtype=torch.float64)
    write_tensors(path, tensors, {"name": sample.name})


def _kept(pair: Case, settings: ModelSettings, cache: Path) -> Path:
    """The file in ``cache`` with the newly preprocessed pair."""
    path = _place(pair, settings, cache)
    _keep(prepare(pair, settings), path)
    return path


def _load(path: Path, settings: ModelSettings) -> PairTensors:
    metadata, tensors = read_tensors(path, "a prepared pair")
    try:
        return _sample(metadata, tensors, settings)
    except (KeyError, ValueError) as error:
        raise NephiError(f"{path} is not a preprocessed pair: it lacks {error}") from None


def _sample(metadata: dict[str, str], t: dict[str, torch.Tensor], settings: ModelSettings) -> PairTensors:
    def both(name: str) -> Both[torch.Tensor] | None:
        return complete(t.get(f"{name}.0"), t.get(f"{name}.1"))

    def view(way: int) -> View:
        matrix, offset, size = (t[f"views.{way}.{part}"] for part in range(3))
        return matrix, offset, size

    return PairTensors(
        name=metadata["name"],
        intensities=Both(t["intensities.0"], t["intensities.1"]),
        masks=both("masks"),
        distances=both("distances"),
        known=both("known"),
        landmarks=both("landmarks"),
        labels=both("labels"),
        half_extents_cube=t["half_extents_cube"],
        lower_cube=t["lower_cube"],
        to_moving_mm=t["to_moving_mm"],
        views=Both(view(0), view(1)),
        spacing_cube=float(t["spacing_cube"]),
        spacing_mm=float(t["spacing_mm"]),
        similarity=settings.similarity,
        dilation=settings.features.dilation,
    )
