"""Instance optimisation: the maps of one pair, level by level from coarse to fine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ..errors import NephiError
from ..images.image_pair import ImagePair
from ..images.volume import VolumePair
from ..maps.code import HybridCode, nodes, zero_code
from ..maps.consensus import Consensus, consensus
from ..maps.maps import Composed, FieldMap, Map, code_like, make_fields
from ..settings import Features, FitSettings, Level, Settings
from ..space.cube import Cube
from .fit import Adam, fit
from .guidance import NOTHING, Guidance
from .guides import make_guides
from .initial import MotionAround
from .objective import Drawn, Objective
from .regularity import Regulariser, fitted
from .similarity import Similarity
from .sliding import Side
from .smoothing import smoothed

_POINTS_PER_THREAD = 2500  # with fewer points per step, a second thread costs more than it helps
_DRAWN_VALUES = 2_000_000  # numbers that are drawn ahead, for as many steps as they make


class Start(Protocol):
    """Maps of a pair, in the cube that they live in."""

    maps: Map
    cube: Cube


class Optimisation:
    """The maps of one pair, refined in place by ``run``. They lie in ``cube``.

    ``prediction``: maps to start from, in their cube. ``guidance``: checked. ``side``: the one of a border that the
    maps are of, where motion slides. ``outer``: what is left of an initial transform, which the maps are composed with.
    Raises NephiError for settings that do not fit the images' dimension.
    """

    def __init__(
        self,
        pair: ImagePair,
        settings: Settings,
        prediction: Start | None,
        similarity: Similarity,
        regulariser: Regulariser | None,
        device: torch.device,
        guidance: Guidance = NOTHING,
        side: Side | None = None,
        outer: Map | None = None,
    ):
        s, predicted = settings, None if prediction is None else prediction.maps
        self.levels = _schedule(s.levels, s.fit.iterations, predicted is not None)
        self.cube = cube = pair.cube if prediction is None else prediction.cube
        self.pair, self.device, self.field = pair.in_cube(cube), device, pair.fitted(s.field)
        known = None if side is None or outer is not None else side.start
        if guidance.landmarks_lps_mm is not None and prediction is None and (side is None or side.within is None):
            known = MotionAround.of(guidance, s.guidance.landmarks_sd_mm, self.pair, outer)
        start, predicted_outer, self.keep_nodes = self._start(predicted, s.fit, known)
        given = outer is not None
        outer = predicted_outer if outer is None else outer
        self.fields = copy.deepcopy(start.fields).to(device).requires_grad_(True)
        self.code = HybridCode(start.code).to(device)
        own = FieldMap(self.fields, self.code)
        self.maps: Map = own if outer is None else outer @ own
        generator = torch.Generator(device).manual_seed(s.fit.seed)
        regularity = fitted(s.regularity, pair.voxel_mm, pair.scale)
        whole = self.maps if side is None else side.whole(self.maps)
        guides = make_guides(guidance, self.pair, whole, s.guidance, regularity.step_mm / cube.unit_mm, device)
        # what an initial transform or guides ask for may be sharper than the nodes; a model's first stage is no sharper
        free = bool(guides) or given
        if side is not None:
            guides = side.guides(guides, self.pair, device)
        self._smooth = 0.0 if free else s.smooth
        if free:
            regularity = replace(regularity, bending_mm=0.0)
        self.objective = Objective(
            s.similarity, regularity, cube.unit_mm, generator, similarity, regulariser, guides, s.guidance.weight
        )
        self.adam = Adam([p for part in (self.code, self.fields) for p in part.parameters()], s.fit)
        self.threads = torch.get_num_threads()
        self.begin = self.end = 0  # the steps of the present level
        self._seen: tuple[Features, VolumePair] | None = None  # the present features, and what they depend on
        self._ahead: Drawn | None = None  # the points of the next steps
        self._first = 0  # the step that they begin with
        self._now: Drawn | None = None  # those of the present step

    def consensus(self) -> Map:
        """Of the two maps, smoothed as far as the images agree with that; ends the optimisation."""
        self._seen = self._ahead = self._now = None  # features of large images take much
        if not self._smooth:
            return consensus(self.maps)
        extents = zip(self.cube.half_extents_cube, self.code.size, strict=True)
        nodes_cube = max(2 * float(half) / (n - 1) for half, n in extents)
        return smoothed(self.pair, Consensus(self.maps), nodes_cube, self._smooth, self.device)

    def run(self, record: Callable[[dict], None]) -> list[dict]:
        """All levels; returns the history, as ``fit``. Raises NephiError if the device runs out of memory."""
        history: list[dict] = []
        try:
            for level, end in self.levels:
                if end > self.adam.done:
                    self._begin(level, end)
                    history += fit(self._evaluate, self.adam, record, prepare=self._prepare, end=end)
        except torch.OutOfMemoryError:
            raise NephiError(
                "the GPU is out of memory: lower similarity.points, choose a larger levels.features.spacing_mm, "
                "another preset, or --device cpu"
            ) from None
        finally:
            torch.set_num_threads(self.threads)
        for module in (self.fields, self.code):
            module.eval().requires_grad_(False)
        return history

    def _start(
        self, predicted: Map | None, settings: FitSettings, known: Map | None
    ) -> tuple[FieldMap, Map | None, bool]:
        """The maps to refine, what they are composed with, and whether their code stays on its nodes.

        Without a prediction: identity maps, zero code; or, from maps that are ``known``, a code that moves points so.

        From a prediction: the same fields with a code whose linear term moves points as predicted, smoothed by its
        nodes. This ends nearer to the truth than the model's own fields and code do, which keep what is wrong with a
        prediction. Without a linear term those are taken, as published.
        """
        if predicted is not None and not (self.field.moves_points and settings.iterations):
            own, outer = (predicted.inner, predicted.outer) if isinstance(predicted, Composed) else (predicted, None)
            assert isinstance(own, FieldMap), "a model predicts maps that fields make"
            return own, outer, True
        generator = torch.Generator().manual_seed(settings.seed)
        fields = make_fields(self.field, self.cube.unit_mm, self.cube.dimension, generator)
        size = self._code_size(self.levels[0][0])
        if known is None or not self.field.moves_points:
            known = predicted
        if known is not None:
            return FieldMap(fields, code_like(known, self.field, size)), None, False
        half_extents = torch.tensor(self.cube.half_extents_cube, dtype=torch.float32)
        return FieldMap(fields, zero_code(self.field, half_extents, size)), None, False

    @property
    def volumes(self) -> VolumePair:
        """The features of the present level."""
        assert self._seen is not None, "no level has begun"
        return self._seen[1]

    def _evaluate(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective(self.maps, [self.volumes], drawn=self._now)

    def _prepare(self, step: int) -> int:
        """The step's points; returns the step that the level began with, as they stay in place for as long."""
        if self._ahead is None or step >= self._first + len(self._ahead.points):
            self._ahead, self._first = self._draw(step), step
        drawn = self._ahead.step(step - self._first)
        if self.device.type != "cuda":
            self._now = drawn
        elif self._now is None:
            self._now = drawn.clone()
        else:  # where a graph reads them
            self._now.copy_(drawn)
        return self.begin

    def _begin(self, level: Level, end: int) -> None:
        """The level's features and nodes."""
        self.begin, self.end = self.adam.done, end
        torch.set_num_threads(self.threads)
        if self._seen is None or level.features != self._seen[0]:
            similarity, dilation = self.objective.similarity, level.features.dilation
            self._seen = None  # before the next ones are made: one level's at a time
            self._seen = (
                level.features,
                self.pair.volumes(
                    level.features, similarity.prepare, self.device, similarity.reach(dilation), means=similarity.means
                ),
            )
        size = self._code_size(level)
        if self.begin and not self.keep_nodes and size != self.code.size:
            self.adam.replace(*self.code.refine(size, self.field.code_degree))
        if level is self.levels[-1][0]:
            self.objective.guides = tuple(guide for guide in self.objective.guides if not guide.early)
        self._ahead = self._now = None
        points = self.objective.points_of(self.volumes)
        torch.set_num_threads(max(1, min(self.threads, points // _POINTS_PER_THREAD)))

    def _draw(self, step: int) -> Drawn:
        """The points of the next steps of the level at once."""
        d, points = self.cube.dimension, self.objective.points_of(self.volumes)
        channels = self.volumes[0].volume.shape[-1] * (3**d if self.objective.similarity.patch else 1)
        steps = max(1, min(self.end - step, _DRAWN_VALUES // (2 * points * (channels + d))))
        return self.objective.draw([self.volumes], self.code.half_extents_cube, steps=steps)

    def _code_size(self, level: Level) -> tuple[int, ...]:
        """Nodes of the local code along x, y (, z): at most as far apart as the settings say."""
        return nodes(self.cube.half_sides_mm, self.field.code_spacing_mm * level.node_spacing_factor)


def _schedule(levels: tuple[Level, ...], iterations: int, predicted: bool) -> list[tuple[Level, int]]:
    """The levels and the step that each ends before; of several that begin with the same step, the last.

    A prediction replaces those of several that have the fewest nodes (large motion), at least the first: the next one
    begins at once.
    """
    if predicted and len(levels) > 1:
        finer = (k for k, level in enumerate(levels) if level.node_spacing_factor < levels[0].node_spacing_factor)
        first = next(finer, 1)
        levels = (replace(levels[first], start=0.0), *levels[first + 1 :])
    begins = {round(level.start * iterations): level for level in levels}
    steps = sorted(begins)
    return [(begins[step], end) for step, end in zip(steps, [*steps[1:], iterations], strict=True)]
