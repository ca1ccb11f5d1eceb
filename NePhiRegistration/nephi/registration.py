"""The main path: check -> masks -> align -> predict -> optimise -> result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import SimpleITK as sitk
import torch

from .both import ROLES, Both, complete
from .config import of_kind
from .device import choose_device
from .errors import NephiError, collected_notices, notice
from .files.image import check_image
from .files.masks import check_mask
from .fitting.optimise import Optimisation
from .fitting.regularity import Regulariser, make_regulariser
from .fitting.similarity import Similarity, make_similarity
from .images.align import align, masks_agreement
from .images.hounsfield import hounsfield, looks_like_ct
from .images.image_pair import ImagePair
from .images.masks import lung_mask
from .learning.model import Model
from .learning.predict import Prediction, predict
from .result import Registration
from .settings import PRESETS, Settings, check
from .space.grid import Grid

# the part of a run at which each of its phases begins; the optimisation has begin and end
PHASES = {"reading": 0.0, "masks": 0.02, "alignment": 0.04, "prediction": 0.05, "features": 0.06}
OPTIMISING = 0.08, 0.8
_LEAST_AGREEMENT = 0.4  # of lungs that were found, after the alignment


def register(
    fixed: sitk.Image,
    moving: sitk.Image,
    *,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    settings: Settings = PRESETS["balanced"],
    auto_mask: bool = True,
    device: str = "auto",
    similarity: Similarity | None = None,
    regulariser: Regulariser | None = None,
    progress: Callable[[str, float, dict], None] | None = None,
    preview: Callable[[str, float, Registration], None] | None = None,
) -> Registration:
    """Register two 2D or 3D SimpleITK images of any grids; the result maps points both ways in LPS mm.

    ``similarity``, ``regulariser``: objects in the place of those that the settings name.
    ``progress(phase, fraction, terms)`` is called as it goes; an exception raised in it ends the run.
    ``preview(phase, fraction, registration)`` is called with the unfinished result, first right after the
    alignment, then at most 200 times as the fields are optimised.
    Without masks, lungs are looked for in CTs (``auto_mask``); where none are found, or with other
    images, points are drawn from the whole images. Raises NephiError for input that can't be registered.
    """
    started = time.perf_counter()
    report = _Progress(settings.fit.iterations, progress, preview)
    settings, similarity, regulariser = _checked(settings, similarity, regulariser)
    target = choose_device(device)
    model = None if settings.model is None else Model.load(settings.model, target)
    report("reading")
    images = _check_images(Both(fixed, moving))
    report("masks")
    with collected_notices() as notes:
        images = images.map(hounsfield, ROLES)
        masks, found = _masks(images, Both(fixed_mask, moving_mask), auto_mask)
        report("alignment")
        # what was taken for lungs may be the room: it is no reason to skip the search
        trusted: Both[sitk.Image | None] = Both(None, None) if found and settings.align == "auto" else masks
        affine, how = align(images, trusted, settings.align)
        lungs = complete(*masks)
        if found and lungs and masks_agreement(lungs, affine) < _LEAST_AGREEMENT:
            masks, found = _masks(images, Both(fixed_mask, moving_mask), auto_mask=False)
            notice("The lungs found in the images do not agree after the alignment; they are not used.")
    pair = ImagePair.of(images, masks, affine, settings, trusted=not found)
    if model is not None:
        report("prediction")
    prediction, flaws = _predict(model, pair, target)
    optimisation = Optimisation(pair, prediction, similarity, regulariser, target)
    report.result = result = Registration(
        maps=optimisation.maps,
        cube=optimisation.cube,
        affine=affine,
        fixed_grid=Grid.of(images.fixed),
        moving_grid=Grid.of(images.moving),
        settings=settings,
        alignment=how,
        fixed_mask=masks.fixed,
        moving_mask=masks.moving,
        found_masks=found,
        notes=(*notes, *flaws),
        device=str(target),
        length_scale=pair.scale,
    )
    report("features")
    result.history = optimisation.run(report.optimising)
    result.seconds = time.perf_counter() - started
    return result


class _Progress:
    """Reports the phases of a run and shows its unfinished result."""

    def __init__(self, iterations: int, progress: Callable | None, preview: Callable | None):
        self.iterations, self.progress, self.preview = max(1, iterations), progress, preview
        self.result: Registration | None = None

    def __call__(self, phase: str) -> None:
        self._tell(phase, PHASES[phase], {})

    def optimising(self, entry: dict) -> None:
        """An entry of the optimisation's history."""
        begin, end = OPTIMISING
        self._tell("optimising", begin + (end - begin) * entry["step"] / self.iterations, entry)

    def _tell(self, phase: str, fraction: float, terms: dict) -> None:
        if self.progress is not None:
            self.progress(phase, fraction, terms)
        if self.preview is not None and self.result is not None:
            self.preview(phase, fraction, self.result)


def _checked(
    settings: Settings, similarity: Similarity | None, regulariser: Regulariser | None
) -> tuple[Settings, Similarity, Regulariser]:
    """The settings, checked, and the two objects; of those that were given the settings take the class's name."""
    if similarity is not None:
        settings = replace(settings, similarity=of_kind(settings.similarity, type(similarity).__name__))
    if regulariser is not None:
        settings = replace(settings, regularity=replace(settings.regularity, name=type(regulariser).__name__))
    check(settings, names=False)
    similarity = similarity or make_similarity(settings.similarity)
    return settings, similarity, regulariser or make_regulariser(settings.regularity)


def _check_images(images: Both[sitk.Image]) -> Both[sitk.Image]:
    fixed, moving = images = images.map(lambda image, role: check_image(image, f"{role} image"), ROLES)
    if fixed.GetDimension() != moving.GetDimension():
        raise NephiError(
            f"the fixed image is {fixed.GetDimension()}D and the moving image {moving.GetDimension()}D; "
            "both must have the same dimension"
        )
    return images


def _masks(
    images: Both[sitk.Image], given: Both[sitk.Image | None], auto_mask: bool
) -> tuple[Both[sitk.Image | None], tuple[str, ...]]:
    """Both masks, checked, and for which images lungs were detected in their place: for both images or for none."""
    masks = images.map(
        lambda image, mask, role: None if mask is None else check_mask(mask, image, f"{role} mask"), given, ROLES
    )
    if not (auto_mask and images.fixed.GetDimension() == 3 and all(looks_like_ct(image) for image in images)):
        return masks, ()
    detected = images.map(lambda image, mask: lung_mask(image) if mask is None else mask, masks)
    if complete(*detected) is None:
        return masks, ()
    return detected, tuple(role for role, mask in zip(ROLES, masks, strict=True) if mask is None)


def _predict(model: Model | None, pair: ImagePair, device: torch.device) -> tuple[Prediction | None, tuple[str, ...]]:
    """A model's prediction, if it is any good, and what a user should know of it."""
    if model is None:
        return None, ()
    prediction = predict(model, pair, device)
    if not prediction.flaw:
        return prediction, ()
    return None, (f"The prediction of model '{pair.settings.model}' was not used: {prediction.flaw}.",)
