"""Instance optimisation: the maps of one pair, level by level from coarse to fine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..images.image_pair import Pair
from ..maps.fields import HybridCode, Maps, nodes
from ..settings import Stage
from ..space.cube import Cube
from .fit import Adam, fit
from .objective import Drawn, Objective

_POINTS_A_THREAD = 2500  # with fewer points a step, a second thread costs more than it helps
_DRAWN_VALUES = 2_000_000  # numbers that are drawn ahead, for as many steps as they make


class Optimisation:
    """Refines the code and the fields of one pair in place.

    ``stages``: by the step that each begins with. ``keep_nodes``: the code stays on the nodes that it comes with.
    """

    def __init__(
        self,
        pair: Pair,
        cube: Cube,
        maps: Maps,
        code: HybridCode,
        stages: dict[int, Stage],
        parameters: list[torch.nn.Parameter],
        keep_nodes: bool = False,
    ):
        s = pair.settings
        self.pair, self.cube, self.maps, self.code, self.stages = pair, cube, maps, code, stages
        self.keep_nodes = keep_nodes
        self.device = code.global_code.device
        generator = torch.Generator(self.device).manual_seed(s.fit.seed)
        regularity = replace(s.regularity, step_mm=s.regularity.step_mm * pair.scale)
        self.objective = Objective(s.similarity, regularity, cube.unit_mm, generator)
        self.adam = Adam(parameters, s.fit)
        self.threads = torch.get_num_threads()
        self.stage, self.volumes, self._seen = 0, None, None
        self._ahead: Drawn | None = None  # the points of the next steps
        self._first = 0  # the step that they begin with
        self._now: Drawn | None = None  # those of the present step

    def run(self, record: Callable[[dict], None]) -> list[dict]:
        """All steps; returns the history, as ``fit``."""
        try:
            return fit(self._evaluate, self.adam, record, prepare=self._prepare)
        finally:
            torch.set_num_threads(self.threads)

    def _evaluate(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective(self.maps, [self.volumes], drawn=self._now)

    def _prepare(self, step: int) -> int:
        """The stage's features and nodes, and the step's points; returns the step that the stage began with."""
        if step in self.stages:
            self.stage = step
            self._begin(self.stages[step], first=step == 0)
        if self._ahead is None or step >= self._first + len(self._ahead.points):
            self._draw(step)
        drawn = self._ahead.step(step - self._first)
        if self.device.type != "cuda" or self._now is None:
            self._now = drawn.clone() if self.device.type == "cuda" else drawn
        else:  # where a graph reads them
            self._now.copy_(drawn)
        return self.stage

    def _begin(self, stage: Stage, first: bool) -> None:
        torch.set_num_threads(self.threads)
        seen = replace(stage, start=0.0, coarsening=1.0)  # what the features depend on
        if seen != self._seen:
            self.volumes = None  # before the next ones are made: one stage's at a time
            self._seen, self.volumes = seen, self.pair.volumes(seen, self.device)
        size = code_size(self.pair, self.cube, stage)
        if not first and not self.keep_nodes and size != self.code.size:
            self.adam.replace(*self.code.refine(size, self.pair.field_settings.code_degree))
        self._ahead = self._now = None
        points = self.objective.points_of(self.volumes)
        torch.set_num_threads(max(1, min(self.threads, points // _POINTS_A_THREAD)))

    def _draw(self, step: int) -> None:
        """The points of the next steps of the stage at once."""
        end = min([start for start in self.stages if start > step] + [self.pair.settings.fit.iterations])
        channels = self.volumes[0].volume.shape[-1] * (3 ** len(self.cube.half_sides_mm) if self._patches else 1)
        values = 2 * self.objective.points_of(self.volumes) * (channels + len(self.cube.half_sides_mm))
        steps = max(1, min(end - step, _DRAWN_VALUES // values))
        self._ahead = self.objective.draw([self.volumes], self.code.upper_cube, steps=steps)
        self._first = step

    @property
    def _patches(self) -> bool:
        return self.objective.similarity.patch


def code_size(pair: Pair, cube: Cube, stage: Stage) -> tuple[int, ...]:
    """Nodes of the local code along x, y (, z): at most as far apart as the settings say."""
    return nodes(cube.half_sides_mm, pair.field_settings.code_spacing_mm * stage.coarsening)
