"""Training data: lists of pairs of files, prepared once and cached, or shapes drawn on demand."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import safetensors
import safetensors.torch
import SimpleITK as sitk
import torch

from ..errors import NephiError
from ..files.cases import Case, fingerprints, read_pairs
from ..files.image import read_image
from ..files.landmarks import read_landmarks
from ..files.masks import read_mask, read_regions
from ..files.tensors import read_tensors
from ..images.align import align
from ..images.image_pair import Pair
from ..settings import PRESETS
from ..synthetic.shapes import TRAINING, VALIDATION, shape_pairs
from .pair_tensors import Sample
from .settings import ModelSettings

SHAPES = ("shapes-solid", "shapes-hollow")  # names that stand for a list of pairs


class Dataset(Protocol):
    """What is trained on: pairs by their number, as a network sees them."""

    def __len__(self) -> int: ...

    def __getitem__(self, k: int) -> Sample: ...


class Shapes:
    """Pairs of triangles and circles; the labels to compare are the shapes themselves."""

    def __init__(self, hollow: bool, settings: ModelSettings, validation: bool, count: int | None = None):
        many, seed = VALIDATION if validation else TRAINING
        self.fixed, self.moving = shape_pairs(count or many, seed, hollow)
        self.settings = settings

    def __len__(self) -> int:
        return len(self.fixed)

    def __getitem__(self, k: int) -> Sample:
        fixed, moving = (torch.from_numpy(stack[k]) for stack in (self.fixed, self.moving))
        d, side = 2, fixed.shape[0]
        return Sample(
            name=f"shapes {k}",
            intensities=(fixed, moving),
            masks=None,
            distances=None,
            half_extents_cube=torch.ones(d),
            lower_cube=-torch.ones(d),
            spacing_cube=2 / (side - 1),
            similarity=self.settings.similarity,
            labels=(fixed.float() / 255, moving.float() / 255),
        )


class Pairs:
    """The pairs of a list of files, each prepared once and kept in ``cache``.

    A pair that can't be prepared is named through ``tell`` and left out. Raises NephiError where none is left.
    """

    def __init__(self, path: str | Path, settings: ModelSettings, cache: Path, tell: Callable[[str], None] = print):
        self.files = []
        cache.mkdir(parents=True, exist_ok=True)
        pairs = read_pairs(path)
        for pair in pairs:
            try:
                self.files.append(_kept(pair, settings, cache))
            except (NephiError, OSError, RuntimeError) as error:
                tell(f"{pair.name} is left out: {error}")
        if not self.files:
            raise NephiError(f"{path}: none of its {len(pairs)} pairs can be read")
        self.settings = settings

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, k: int) -> Sample:
        return _load(self.files[k], self.settings)


def open_data(
    name: str, settings: ModelSettings, cache: Path, validation: bool, tell: Callable[[str], None] = print
) -> Dataset:
    """``shapes-solid``, ``shapes-hollow``, or a list of pairs as for ``nephi batch``; raises NephiError."""
    if name in SHAPES:
        if settings.dimension != 2:
            raise NephiError(f"{name} is 2D, the model {settings.dimension}D: set model.dimension to 2")
        return Shapes(name == SHAPES[1], settings, validation)
    return Pairs(name, settings, cache, tell)


def sample_of(
    fixed: sitk.Image,
    moving: sitk.Image,
    settings: ModelSettings,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    name: str = "",
) -> Sample:
    """Two images as a model sees them: aligned, resampled and in their window. For data sets of one's own.

    Raises NephiError for images that cannot be aligned or do not overlap.
    """
    return Sample.of(aligned_pair(fixed, moving, fixed_mask, moving_mask, settings), settings.features, name)


def aligned_pair(
    fixed: sitk.Image,
    moving: sitk.Image,
    fixed_mask: sitk.Image | None,
    moving_mask: sitk.Image | None,
    settings: ModelSettings,
) -> Pair:
    """Two images in the cube that a model works in; raises NephiError as ``sample_of``."""
    made = replace(PRESETS["balanced"], similarity=settings.similarity, align=settings.align)
    affine, _ = align(fixed, moving, fixed_mask, moving_mask, settings.align)
    return Pair(fixed, moving, fixed_mask, moving_mask, affine, made, cube_margin_mm=settings.cube_margin_mm)


# ---- preparing ------------------------------------------------------------------------------------------


def prepare(pair: Case, settings: ModelSettings) -> Sample:
    """Reads, aligns and resamples one pair of files; raises NephiError for unusable files."""
    files = pair.files
    for role in ("fixed", "moving"):
        if role not in files:
            raise NephiError(f"no {role} image is given")
    images = [read_image(files[role], f"{role} image") for role in ("fixed", "moving")]
    if any(image.GetDimension() != settings.dimension for image in images):
        kinds = " and ".join(f"{image.GetDimension()}D" for image in images)
        raise NephiError(f"the images are {kinds}, the model {settings.dimension}D")
    masks = [
        read_mask(files[f"{role}_mask"], image, f"{role} mask") if f"{role}_mask" in files else None
        for role, image in zip(("fixed", "moving"), images, strict=True)
    ]
    seen = aligned_pair(images[0], images[1], masks[0], masks[1], settings)
    affine, sample = seen.affine, Sample.of(seen, settings.features, pair.name)

    def points(kind: str):
        both = [read_landmarks(files[f"{role}_{kind}"], image)
                for role, image in zip(("fixed", "moving"), images, strict=True)
                if f"{role}_{kind}" in files]  # fmt: skip
        if len(both) < 2:
            return None
        if both[0].shape != both[1].shape:
            raise NephiError(f"{len(both[0])} fixed and {len(both[1])} moving {kind}: they must match row by row")
        there = affine.inverse()(both[1])
        return tuple(torch.tensor(seen.cube.to_cube(p), dtype=torch.float32) for p in (both[0], there))

    labels = None
    if "fixed_labels" in files and "moving_labels" in files:
        grid = seen.working_grid(settings.features.spacing_mm)
        maps = [read_regions(files[f"{role}_labels"], image, f"{role} labels")
                for role, image in zip(("fixed", "moving"), images, strict=True)]  # fmt: skip
        through = (None, affine.transform())
        on_grid = [grid.resample(m, t, sitk.sitkNearestNeighbor) for m, t in zip(maps, through, strict=True)]
        fixed, moving = (torch.from_numpy(sitk.GetArrayFromImage(m).astype(np.int16)) for m in on_grid)
        labels = (fixed, moving)
    return replace(sample, known=points("points"), landmarks=points("landmarks"), labels=labels)


_TWO = ("intensities", "masks", "distances", "known", "landmarks", "labels")  # of the fixed and the moving image
_ONE = ("half_extents_cube", "lower_cube", "to_moving_mm")
_HALF = torch.float16


def _kept(pair: Case, settings: ModelSettings, cache: Path) -> Path:
    """The file in ``cache`` that holds the prepared pair, made where there is none from the same files."""
    # the alignment and the model's settings decide as much as the files
    made_of = {
        "format": 2,
        "inputs": fingerprints(pair.files, False, settings.align, roles=tuple(pair.files)),
        "similarity": asdict(settings.similarity),
        "features": asdict(settings.features),
        "margin": settings.cube_margin_mm,
        "align": settings.align,
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = cache / f"{pair.name}-{key}.safetensors"
    if not path.is_file():
        sample = prepare(pair, settings)
        tensors = {name: getattr(sample, name) for name in _ONE}
        for name in _TWO:
            for way, tensor in enumerate(getattr(sample, name) or ()):
                tensors[f"{name}.{way}"] = tensor.contiguous()
        for way, view in enumerate(sample.views or ()):
            for part, tensor in enumerate(view):
                tensors[f"views.{way}.{part}"] = tensor.contiguous()
        for way in (0, 1):  # a 255th of the window is below the noise
            tensors[f"intensities.{way}"] = (tensors[f"intensities.{way}"] * 255).round().to(torch.uint8)
            if f"distances.{way}" in tensors:
                tensors[f"distances.{way}"] = tensors[f"distances.{way}"].to(_HALF)
        for name in ("spacing_cube", "spacing_mm"):
            tensors[name] = torch.tensor(getattr(sample, name), dtype=torch.float64)
        scratch = path.with_suffix(f".{os.getpid()}.part")
        safetensors.torch.save_file(tensors, str(scratch), {"name": pair.name})
        os.replace(scratch, path)
    return path


def _load(path: Path, settings: ModelSettings) -> Sample:
    metadata, t = read_tensors(path)

    def two(name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        return (t[f"{name}.0"], t[f"{name}.1"]) if f"{name}.0" in t else None

    return Sample(
        name=metadata["name"],
        intensities=(t["intensities.0"], t["intensities.1"]),
        masks=two("masks"),
        distances=two("distances"),
        known=two("known"),
        landmarks=two("landmarks"),
        labels=two("labels"),
        half_extents_cube=t["half_extents_cube"],
        lower_cube=t["lower_cube"],
        to_moving_mm=t["to_moving_mm"],
        views=tuple(tuple(t[f"views.{way}.{part}"] for part in range(3)) for way in (0, 1)),
        spacing_cube=float(t["spacing_cube"]),
        spacing_mm=float(t["spacing_mm"]),
        similarity=settings.similarity,
        dilation=settings.features.dilation,
    )
