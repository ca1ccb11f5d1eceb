"""The main path: check -> masks -> align -> features -> optimise -> result."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace

import SimpleITK as sitk
import torch

from .device import choose_device
from .errors import NephiError, collected_notices
from .files.image import check_image
from .files.masks import check_mask
from .fitting.optimise import Optimisation, code_size
from .images.align import align
from .images.image_pair import Pair
from .images.masks import looks_like_ct, lung_mask
from .learning.model import Model
from .learning.predict import predict
from .maps.fields import HybridCode, Maps, code_like, composed, make_fields, zero_code
from .result import Registration
from .settings import PRESETS, Settings, Stage, check
from .space.cube import Cube
from .space.grid import Grid


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
    preview: Callable[[str, float, Registration], None] | None = None,
) -> Registration:
    """Register two 2D or 3D SimpleITK images of any grids; the result maps points both ways in LPS mm.

    ``progress(stage, fraction, terms)`` is called as it goes; an exception raised in it ends the run.
    ``preview(stage, fraction, registration)`` is called with the unfinished result, first right after the
    alignment, then at most 200 times as the fields are optimised.
    Without masks, lungs are looked for in CTs (``auto_mask``); where none are found, or with other
    images, points are drawn from the whole images. Raises NephiError for input that can't be registered.
    """
    started = time.perf_counter()
    check(settings)
    tell = progress or (lambda stage, fraction, terms: None)
    target = choose_device(device)
    model = None if settings.model is None else Model.load(settings.model, target)
    tell("reading", 0.0, {})
    fixed, moving = check_image(fixed, "fixed image"), check_image(moving, "moving image")
    if fixed.GetDimension() != moving.GetDimension():
        raise NephiError(
            f"the fixed image is {fixed.GetDimension()}D and the moving image {moving.GetDimension()}D; "
            "both must have the same dimension"
        )
    tell("masks", 0.02, {})
    with collected_notices() as notes:
        fixed_mask = None if fixed_mask is None else check_mask(fixed_mask, fixed, "fixed mask")
        moving_mask = None if moving_mask is None else check_mask(moving_mask, moving, "moving mask")
    found = []
    if auto_mask and fixed.GetDimension() == 3 and looks_like_ct(fixed) and looks_like_ct(moving):
        fixed_mask, moving_mask, found = _find_lungs(fixed, moving, fixed_mask, moving_mask)

    tell("alignment", 0.04, {})
    affine, how = align(fixed, moving, fixed_mask, moving_mask, settings.align)
    pair = Pair(fixed, moving, fixed_mask, moving_mask, affine, settings, trusted=not found)

    predicted = None
    if model is not None:
        tell("prediction", 0.05, {})
        predicted = predict(model, pair, target)
        if predicted.flaw:
            notes.append(f"The prediction of model '{settings.model}' was not used: {predicted.flaw}.")
            predicted = None
    cube, prediction = (predicted.cube, predicted.maps) if predicted else (pair.cube, None)
    # by the step that each begins with; of several that begin together the last
    stages = {round(stage.start * settings.fit.iterations): stage for stage in _stages(settings, predicted is not None)}
    start = _start(pair, cube, prediction, stages[0])
    fields, code = copy.deepcopy(start.fields).to(target).requires_grad_(True), HybridCode(start.code).to(target)
    maps = composed(Maps(fields, code), start.outer)
    pair.work_in(cube)

    result = Registration(
        maps=maps,
        cube=cube,
        affine=affine,
        fixed_grid=Grid.of(fixed),
        moving_grid=Grid.of(moving),
        settings=settings,
        alignment=how,
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        found_masks=tuple(found),
        notes=tuple(notes),
        device=str(target),
        length_scale=pair.scale,
    )
    show = preview or (lambda stage, fraction, registration: None)

    def record(entry: dict) -> None:
        fraction = 0.08 + 0.72 * entry["step"] / max(1, settings.fit.iterations)
        tell("optimising", fraction, entry)
        show("optimising", fraction, result)

    tell("features", 0.06, {})
    show("features", 0.06, result)
    parameters = [*code.parameters(), *fields.parameters()]
    optimisation = Optimisation(pair, cube, maps, code, stages, parameters, keep_nodes=start is prediction)
    try:
        result.history = optimisation.run(record)
    except torch.OutOfMemoryError:
        raise NephiError(
            "the GPU is out of memory: lower similarity.points, choose a larger similarity.stages.spacing_mm, "
            "another preset, or --device cpu"
        ) from None
    for module in (fields, code):
        module.eval().requires_grad_(False)
    result.seconds = time.perf_counter() - started
    return result


def _stages(settings: Settings, predicted: bool) -> tuple[Stage, ...]:
    """Of several, a prediction saves the first, which looks for large motion: the second begins at once."""
    first, *others = settings.similarity.stages
    return (replace(others[0], start=0.0), *others[1:]) if predicted and others else (first, *others)


def _start(pair: Pair, cube: Cube, predicted: Maps | None, stage: Stage) -> Maps:
    """From nothing: both maps the identity, the code zero.

    From a prediction: the same fields with a code whose linear term moves points as predicted, smoothed by its nodes.
    This ends nearer to the truth than the model's own fields and code do, which keep what is wrong with a prediction.
    Without a linear term those are taken, as published.
    """
    s, fit_settings = pair.field_settings, pair.settings.fit
    if predicted is not None and not (s.linear and fit_settings.iterations):
        return predicted
    fields = make_fields(s, cube.unit_mm, cube.dimension, torch.Generator().manual_seed(fit_settings.seed))
    size = code_size(pair, cube, stage)
    if predicted is not None:
        return Maps(fields, code_like(predicted, s, size))
    return Maps(fields, zero_code(s, torch.tensor(cube.upper_cube, dtype=torch.float32), size))


def _find_lungs(fixed, moving, fixed_mask, moving_mask):
    """The masks, with lungs put in where none is given; on both sides or on none."""
    given = (fixed_mask is not None, moving_mask is not None)
    fixed_mask = lung_mask(fixed) if fixed_mask is None else fixed_mask
    moving_mask = lung_mask(moving) if moving_mask is None else moving_mask
    if fixed_mask is None or moving_mask is None:
        return (fixed_mask if given[0] else None), (moving_mask if given[1] else None), []
    return fixed_mask, moving_mask, [name for name, g in zip(("fixed", "moving"), given, strict=True) if not g]
