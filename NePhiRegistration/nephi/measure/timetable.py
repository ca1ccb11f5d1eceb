"""How far a run is, by the seconds that its stages should take, corrected by those that they take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

Tell = Callable[[str, float, dict], None]
_DOUBT_S = 2.0  # stages must have taken about this long to be believed more than the estimate
_LEAST = 0.1  # of what a stage should take is left, whatever it has taken
_SEEN = 0.1  # part of a stage after which its own pace counts


class Timetable:
    """``timetable(stage, part, terms)`` passes on ``(stage, fraction, terms)``: ``part`` of a stage as that of the run.

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
        self._known = self._took = 0.0  # seconds of finished stages, as expected and as they were
        self._fraction = 0.0

    def expect(self, expected: Mapping[str, float]) -> None:
        """What is known better, or only now, of stages to come."""
        self.expected |= expected

    def __call__(self, stage: str, part: float, terms: dict) -> None:
        now = self.clock()
        if stage != self._stage:
            if self._stage is not None:
                self._known += self.expected.get(self._stage, 0.0)
                self._took += now - self._since
            self._stage, self._since = stage, now
        self._fraction = 1.0 if stage == "done" else max(self._fraction, self._of_all(stage, part, now))
        self.tell(stage, self._fraction, terms)

    def _of_all(self, stage: str, part: float, now: float) -> float:
        """Seconds so far, as a part of those and of the seconds left."""
        names, here = list(self.expected), self.expected.get(stage, 0.0)
        pace = (self._took + now - self._since + _DOUBT_S) / (self._known + here * part + _DOUBT_S)
        if part < _SEEN:  # it may not have told of its progress for a while
            pace = (self._took + _DOUBT_S) / (self._known + _DOUBT_S)
        after = sum(self.expected[name] for name in names[names.index(stage) + 1 :]) if stage in names else 0.0
        within = now - self._since
        left = within * (1 - part) / part if part >= _SEEN else max(pace * here - within, _LEAST * pace * here)
        passed = now - self._started
        total = passed + left + pace * after
        return passed / total if total > 0 else 0.0


def in_stages(progress: Tell | None, expected: Mapping[str, float]) -> Tell:
    """``progress`` itself if it knows stages; else a timetable of these that passes on to it."""
    if progress is None:
        return lambda stage, part, terms: None
    return progress if isinstance(progress, Timetable) else Timetable(expected, progress)
