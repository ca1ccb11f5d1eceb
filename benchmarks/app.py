"""What the browser application costs: seconds until its page and its views can be used, latency of a slice, memory.

    python -m benchmarks.app [--size 512 512 300]

In the environment of ``nephi app`` with playwright and Debian's Chromium (docs/app.md). The scan is generated, and read
from a file as a user's would be. Latency is the time from a key on a slice's slider to the new picture in the page.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "Testing" / "app"))
sys.path.insert(0, str(Path(__file__).parents[1] / "NePhiRegistration"))

_STEPS = 25


def write_scan(path: Path, size: tuple[int, int, int]) -> None:
    """A chest as a CT of that size: the phantom, resampled, with noise so that no picture equals the next."""
    import SimpleITK as sitk
    from nephi.synthetic.phantom import make_phantom

    small = sitk.Cast(make_phantom().fixed, sitk.sitkInt16)
    spacing = [n * s / m for n, s, m in zip(small.GetSize(), small.GetSpacing(), size, strict=True)]
    image = sitk.Resample(
        small, size, sitk.Transform(), sitk.sitkLinear, small.GetOrigin(), spacing, small.GetDirection()
    )
    noise = np.random.default_rng(0).normal(0, 20, image.GetSize()[::-1]).astype(np.int16)
    noisy = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(image) + noise)
    noisy.CopyInformation(image)
    sitk.WriteImage(noisy, str(path))


def memory_mb(pids: list[int]) -> float:
    """Resident memory of processes, what they share counted once each."""
    total = 0.0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024 / 1e6
    return total


def cpu_s(pids: list[int]) -> float:
    """CPU seconds of processes until now, which other work on the computer does not change."""
    ticks = [Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13] for pid in pids]
    return sum(int(tick) for pair in ticks for tick in pair) / os.sysconf("SC_CLK_TCK")


_READY = "window.trame.state.get('ready')"
# counts pictures of a view as the browser has drawn them
_WATCH = """() => {
    const area = document.querySelectorAll('.layout-grid-item')[0];
    window.seen = 0;
    const watch = () => {
        for (const image of area.querySelectorAll('img')) image.addEventListener('load', () => window.seen++);
    };
    watch();
    new MutationObserver(watch).observe(area, {childList: true, subtree: true});
}"""
_STEP = """async () => {
    const slider = document.querySelector('#slice-Red');
    const before = window.seen, start = performance.now();
    slider.value = Number(slider.value) + Number(slider.step) * (window.back ? -1 : 1);
    slider.dispatchEvent(new Event('input', {bubbles: true}));
    while (window.seen === before && performance.now() - start < 10000) await new Promise(r => setTimeout(r, 1));
    return performance.now() - start;
}"""


def main(arguments: list[str] | None = None) -> None:
    from browser import App, Browser, Panel

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 300), metavar="N")
    options = parser.parse_args(arguments)
    figures: dict[str, object] = {"size": list(options.size)}
    with tempfile.TemporaryDirectory() as scratch:
        folder, temporary = Path(scratch) / "scans", Path(scratch) / "temporary"
        for made in (folder, temporary):
            made.mkdir()
        write_scan(folder / "scan.nrrd", tuple(options.size))
        browser = Browser()
        started = time.perf_counter()
        app = App(folder, temporary)
        panel = Panel(browser.context(), app.address)
        figures["usable_s_after_the_command"] = round(time.perf_counter() - started, 2)
        figures["cpu_s_until_then"] = round(cpu_s([app.process.pid, *app.processes()]), 2)
        panel.page.wait_for_function(_READY)
        figures["views_s_after_the_command"] = round(time.perf_counter() - started, 2)
        figures["cpu_s_until_the_views"] = round(cpu_s([app.process.pid, *app.processes()]), 2)
        panel.page.goto(app.address)
        started = time.perf_counter()
        panel.page.reload()
        panel.page.wait_for_selector("#phantom")
        figures["usable_s_after_a_reload"] = round(time.perf_counter() - started, 2)
        started = time.perf_counter()
        before = {pid: cpu_s([pid]) for pid in [app.process.pid, *app.processes()]}
        other = Panel(browser.context(), app.address)
        figures["usable_s_of_another_session"] = round(time.perf_counter() - started, 2)
        other.page.wait_for_function(_READY)
        spent = {pid: cpu_s([pid]) for pid in [app.process.pid, *app.processes()]}
        figures["cpu_s_of_it"] = round(sum(spent[pid] for pid in spent.keys() - before.keys()), 2)
        for page in (panel.page, other.page):  # the question for the devices has been answered, and its process is gone
            page.wait_for_function("document.querySelectorAll('#device option').length > 1")
        other.context.close()
        figures["memory_mb_of_two_empty_sessions"] = round(memory_mb([app.process.pid, *app.processes()]))
        started = time.perf_counter()
        panel.choose("fixed", "scan.nrrd")
        panel.view("Red")
        figures["opened_s"] = round(time.perf_counter() - started, 2)
        panel.page.evaluate(_WATCH)
        milliseconds = []
        for i in range(_STEPS):
            panel.page.evaluate(f"window.back = {str(i % 2 == 1).lower()}")
            milliseconds.append(panel.page.evaluate(_STEP))
            panel.page.wait_for_timeout(400)  # until the still picture in better quality has come, too
        figures["slice_ms"] = {
            name: round(float(np.percentile(milliseconds, q))) for name, q in (("median", 50), ("p95", 95))
        }
        figures["memory_mb_with_the_scan"] = round(memory_mb([app.process.pid, *app.processes()]))
        browser.close()
        app.end()
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
