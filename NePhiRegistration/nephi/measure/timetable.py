"""The progress of a run: from the expected seconds of its stages, corrected by those they actually take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

Tell = Callable[[str, float, dict], None]
_DOUBT_S = 0.1  # stages must have taken about this long to outweigh the estimate
_LEAST = 0.1  # least share of the expected time of a stage that is counted as left
_SEEN = 0.1  # share of a stage after which its own pace is used


class Timetable:
    """``timetable(stage, part, terms)`` passes on ``(stage, fraction, terms)``: progress within a stage to that of the
    run.

    ``expected``: seconds of each stage, in their order; stages may be left out. ``started``: by the clock. The fraction
    never falls; seconds so far times (1 - fraction) / fraction are the seconds left.
    """

    def __init__(
        self,
        expected: Mapping[str, float],
        tell: Tell,
        started: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.tell, self.clock = tell, clock
        self.expected = dict(expected)
        self._started = self._since = clock() if started is None else started
        self._stage: str | None = None
        self._finished: list[tuple[float, float]] = []  # seconds of stages, as expected and as they were
        self._fraction = 0.0

    def expect(self, expected: Mapping[str, float]) -> None:
        """Updates the expected seconds of stages to come."""
        self.expected |= expected

    def __call__(self, stage: str, part: float, terms: dict) -> None:
        now = self.clock()
        if stage != self._stage:
            if self._stage is not None:
                self._finished.append((self.expected.get(self._stage, 0.0), now - self._since))
            self._stage, self._since = stage, now
        self._fraction = 1.0 if stage == "done" else max(self._fraction, self._of_all(stage, part, now))
        self.tell(stage, self._fraction, terms)

    def _of_all(self, stage: str, part: float, now: float) -> float:
        """The elapsed share of the total time: elapsed plus remaining seconds."""
        if stage not in self.expected:  # what follows is unknown; the fraction never decreases
            return 0.0
        names, here, within = list(self.expected), self.expected.get(stage, 0.0), now - self._since
        told = part >= _SEEN  # before, it may not have reported its progress for a while
        pace = _pace([*self._finished, *([(here * part, within)] if told else [])])
        after = sum(self.expected[name] for name in names[names.index(stage) + 1 :]) if stage in names else 0.0
        left = within * (1 - part) / part if told else max(pace * here - within, _LEAST * pace * here)
        passed = now - self._started
        total = passed + left + pace * after
        return passed / total if total > 0 else 0.0


def _pace(stages: list[tuple[float, float]]) -> float:
    """How much longer than expected stages took: the mean of their ratios, so that no single one decides."""
    known = [(expected, took) for expected, took in stages if expected > 0]
    weights = [math.sqrt(_DOUBT_S), *(math.sqrt(expected) for expected, _ in known)]
    ratios = [0.0, *(math.log((took + 0.01 * expected) / expected) for expected, took in known)]
    return math.exp(sum(w * r for w, r in zip(weights, ratios, strict=True)) / sum(weights))


def in_stages(progress: Tell | None, expected: Mapping[str, float]) -> Tell:
    """``progress`` itself if it knows stages; else a timetable of these that passes on to it."""
    if progress is None:
        return lambda stage, part, terms: None
    return progress if isinstance(progress, Timetable) else Timetable(expected, progress)
