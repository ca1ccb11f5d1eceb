"""The main path: check -> masks -> align -> predict -> optimise -> result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import SimpleITK as sitk
import torch

from .both import Both, complete
from .config import of_kind
from .device import choose_device, release_freed_memory
from .errors import NephiError, collected_notices
from .fitting.configure import configured
from .fitting.dense import refined_densely
from .fitting.guidance import NOTHING, Guidance
from .fitting.initial import outer_map
from .fitting.optimise import Optimisation
from .fitting.regularity import Regulariser
from .fitting.similarity import Similarity, make_similarity
from .fitting.sliding import Side, border_of, guidance_within, slid, steps
from .images.image_pair import ImagePair
from .learning.model import Model
from .learning.predict import Prediction, predict
from .maps.maps import Map
from .maps.sliding import Sliding
from .measure.border import border_flaws
from .measure.estimate import beginning, stages
from .measure.timetable import Tell, Timetable, in_stages
from .preprocessing import checked_images, preprocess
from .result import Registration
from .settings import PRESETS, REGULARISERS, Settings, check
from .space.grid import Grid

PHASES = ("reading", "masks", "alignment", "prediction", "features")  # before the optimisation


def register(
    fixed: sitk.Image,
    moving: sitk.Image,
    *,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    settings: Settings = PRESETS["balanced"],
    guidance: Guidance | None = None,
    auto_mask: bool = True,
    device: str = "auto",
    similarity: Similarity | None = None,
    regulariser: Regulariser | None = None,
    progress: Callable[[str, float, dict], None] | None = None,
    preview: Callable[[str, float, Registration], None] | None = None,
) -> Registration:
    """Register two 2D or 3D SimpleITK images of any grids; the result maps points both ways in LPS mm.

    ``guidance``: landmarks, labels and regions that are known beyond the images, and a transform to start from.
    ``similarity``, ``regulariser``: objects in the place of those that the settings name.
    ``progress(phase, fraction, terms)`` is called as it goes, with the fraction that is done (to a ``Timetable``: of
    the phase); an exception raised in it ends the run.
    ``preview(phase, fraction, registration)`` is called with the unfinished result and the fraction of the phase, first
    right after the alignment, then at most 200 times as the fields are optimised.
    Without masks, lungs are looked for in CTs (``auto_mask``); where none are found, or with other
    images, points are drawn from the whole images. Raises NephiError for input that can't be registered.
    """
    started = time.perf_counter()
    settings, similarity = _checked(settings, similarity, regulariser)
    target = choose_device(device)
    given = fixed_mask is not None and moving_mask is not None
    sizes = fixed.GetSize(), fixed.GetSpacing(), moving.GetSize()
    expected = beginning(stages(settings, *sizes, str(target), masks=given or not auto_mask))
    report = _Progress(steps(settings), in_stages(progress, expected), preview)
    report("reading")
    model = None if settings.model is None else Model.load(settings.model, target)
    with collected_notices() as notes:
        images = checked_images(Both(fixed, moving))
        guidance = (NOTHING if guidance is None else guidance).checked(images)
        if guidance.initial is not None and (settings.align != "auto" or model is not None):
            raise NephiError("an initial transform replaces alignment and model: give only one of them")
        prepared = preprocess(
            images, Both(fixed_mask, moving_mask), settings.align, guidance.initial, auto_mask, report
        )
    if settings.sliding and complete(*prepared.masks) is None:
        raise NephiError("sliding needs masks of both images, along whose border motion slides")
    pair = prepared.pair(settings.similarity, Both(*guidance.excluded))
    used, decided = configured(pair, settings)
    report.expect(stages(used, *sizes, str(target)), steps(used))
    if used.similarity != settings.similarity:
        pair, similarity = pair.compared_by(used.similarity), make_similarity(used.similarity)
    if model is not None:
        report("prediction")
    prediction, flaws = _predict(settings.model, model, pair, target)
    release_freed_memory()  # of masks, alignment and prediction
    border = border_of(pair, pair.cube if prediction is None else prediction.cube, target) if used.sliding else None
    rest = None if guidance.initial is None else outer_map(guidance.initial, pair, target)
    optimise = partial(
        Optimisation, similarity=similarity, regulariser=regulariser, device=target, guidance=guidance, outer=rest
    )
    first = guidance if border is None else guidance_within(guidance, pair)
    optimisation = optimise(pair, used, prediction, guidance=first, side=None if border is None else Side(border))
    report.result = result = Registration(
        maps=optimisation.maps,
        cube=optimisation.cube,
        alignment=prepared.alignment,
        fixed_grid=Grid.of(images.fixed),
        moving_grid=Grid.of(images.moving),
        settings=settings,
        configured=decided,
        fixed_mask=prepared.masks.fixed,
        moving_mask=prepared.masks.moving,
        found_masks=prepared.found,
        guidance=guidance,
        notes=(*notes, *flaws),
        device=str(target),
        length_scale=pair.scale,
    )
    report("features")
    result.history = optimisation.run(report.optimising)
    result.maps = _final_maps(optimisation, used, report)
    pair = optimisation.pair
    del optimisation, model  # features of large images take much
    if border is not None:
        result.history += slid(result, optimise, border, pair, used, prediction, report.optimising, guidance.rigid)
        assert isinstance(result.maps, Sliding)
        result.notes += tuple(border_flaws(result.maps, result.cube.unit_mm, result.length_scale))
    del images, pair, prepared, prediction
    release_freed_memory()  # before the volumes of a large image that are made of the result
    result.seconds = time.perf_counter() - started
    return result


class _Progress:
    """Reports the phases of a run and shows its unfinished result."""

    def __init__(self, iterations: int, progress: Tell, preview: Callable | None):
        self.iterations, self.progress, self.preview = max(1, iterations), progress, preview
        self.result: Registration | None = None

    def __call__(self, phase: str, part: float = 0.0, terms: dict | None = None) -> None:
        self.progress(phase, part, terms or {})
        if self.preview is not None and self.result is not None:
            self.preview(phase, part, self.result)

    def expect(self, expected: dict[str, float], iterations: int) -> None:
        """The seconds and the steps of what is still to come, once it is known what the pair needs."""
        self.iterations = max(1, iterations)
        if isinstance(self.progress, Timetable):
            self.progress.expect({name: expected[name] for name in ("features", "optimising") if name in expected})

    def optimising(self, entry: dict, before: int = 0) -> None:
        """An entry of the optimisation's history; its steps go on from those of another one ``before``."""
        entry["step"] += before
        self("optimising", entry["step"] / self.iterations, entry)


def _checked(
    settings: Settings, similarity: Similarity | None, regulariser: Regulariser | None
) -> tuple[Settings, Similarity]:
    """The settings, checked, and the similarity; of objects that were given the settings take the class's name."""
    if similarity is not None:
        settings = replace(settings, similarity=of_kind(settings.similarity, type(similarity).__name__))
    if regulariser is not None:
        settings = replace(settings, regularity=replace(settings.regularity, name=type(regulariser).__name__))
    check(settings, names=False)
    if regulariser is None:
        REGULARISERS.check(settings.regularity.name)
    return settings, similarity or make_similarity(settings.similarity)


def _final_maps(optimisation: Optimisation, settings: Settings, report: _Progress) -> Map:
    """Refined voxel by voxel, and the consensus of both directions, where the settings ask for it."""
    if any(settings.dense.all_rounds) and not settings.sliding:
        guides = optimisation.objective.guides
        held = [guide.held for guide in guides if guide.held is not None]
        # the better map, as what is held stays as it is
        maps = optimisation.consensus() if guides and settings.consensus else optimisation.maps
        refined = partial(refined_densely, optimisation.pair, maps, settings.dense, guided=bool(guides))
        found = refined(held, lambda part: report("optimising", 1.0))
        spoilt = [points for guide in guides if (points := guide.spoilt(maps, found)) is not None]
        optimisation.maps = refined(held + spoilt, lambda part: report("optimising", 1.0)) if spoilt else found
    return optimisation.consensus() if settings.consensus else optimisation.maps


def _predict(
    name: str | None, model: Model | None, pair: ImagePair, device: torch.device
) -> tuple[Prediction | None, tuple[str, ...]]:
    """A model's prediction, if it is any good, and what a user should know of it."""
    if model is None:
        return None, ()
    prediction = predict(model, pair, device)
    if not prediction.flaw:
        return prediction, ()
    return None, (f"The prediction of model '{name}' was not used: {prediction.flaw}.",)
