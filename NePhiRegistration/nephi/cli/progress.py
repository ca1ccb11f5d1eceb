"""Progress reporting: bar, JSON lines, Slicer tags, or none."""

from __future__ import annotations

import json
import sys
import time

STYLES = ("bar", "json", "slicer", "none")


def tell_notices(notices: list[str]) -> None:
    for text in notices:
        print(f"nephi: note: {text}", file=sys.stderr, flush=True)


class Progress:
    """``progress(stage, fraction, terms)``: called often, prints at most ten times a second, a preview always."""

    def __init__(self, style: str, stream=None, started: float | None = None):
        self.style, self.started, self.printed = style, time.perf_counter() if started is None else started, 0.0
        self.stage: str | None = None
        # in a log, errors alone go to stderr
        self.stream = stream or (sys.stderr if style == "bar" and sys.stderr.isatty() else sys.stdout)

    def __call__(self, stage: str, fraction: float, terms: dict) -> None:
        now = time.perf_counter()
        news = stage != self.stage
        if self.style == "none" or not (news or "preview" in terms or now - self.printed > 0.1):
            return
        getattr(self, f"_{self.style}")(stage, fraction, terms, now - self.started, news)
        self.printed, self.stage = now, stage
        self.stream.flush()

    def _bar(self, stage, fraction, terms, elapsed, news):
        if not self.stream.isatty():  # a log file: one line per stage
            if news:
                print(f"{elapsed:6.1f} s  {stage}", file=self.stream)
            return
        filled = round(30 * fraction)
        left = f"{elapsed / fraction * (1 - fraction):4.0f} s left" if fraction > 0 else ""
        loss = f"  loss {terms['loss']:.4f}" if "loss" in terms else ""
        line = f"{'#' * filled:<30} {100 * fraction:3.0f} %  {stage}{loss}  {left}"
        print(f"\r{line:<90}", end="\n" if fraction >= 1 else "", file=self.stream)

    def _json(self, stage, fraction, terms, elapsed, news):
        entry = {"stage": stage, "fraction": round(fraction, 4), "seconds": round(elapsed, 2), **terms}
        print(json.dumps(entry), file=self.stream)

    def _slicer(self, stage, fraction, terms, elapsed, news):
        if news:
            tags = f"<filter-name>NePhi</filter-name><filter-comment>{stage}</filter-comment>"
            print(f"<filter-start>{tags}</filter-start>", file=self.stream)
        print(f"<filter-progress>{fraction:.4f}</filter-progress>", file=self.stream)
        if fraction >= 1:
            print("<filter-end><filter-name>NePhi</filter-name></filter-end>", file=self.stream)
