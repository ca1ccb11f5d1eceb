"""Cases run in child processes: a crash, a hang or too much memory ends one child and is an outcome like any other."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

LIMIT_S = int(os.environ.get("NEPHI_FAULTS_LIMIT_S", "60"))  # more where others use the machine, too
LIMIT_BYTES = 4 * 10**9
RIGHT, LINE, SKIPPED, WRONG = "right", "one line", "not tried", "wrong"


@dataclass(frozen=True)
class Outcome:
    part: str
    kind: str
    seed: int
    result: str
    how: str = ""  # what was done to it
    said: str = ""


def kept_folder() -> Path:
    """A folder until this process ends; one that it forks leaves it alone."""
    folder = Path(tempfile.mkdtemp(prefix="nephi-faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def run(cases: list[tuple[str, str, int]], jobs: int, tell: Callable[[Outcome], None]) -> None:
    """Run (part, kind, seed) of all cases, ``jobs`` at a time; ``tell`` gets every outcome."""
    waiting: queue.Queue[tuple[str, str, int]] = queue.Queue()
    for case in cases:
        waiting.put(case)
    lock = threading.Lock()

    def work() -> None:
        child = _Child()
        try:
            while True:
                try:
                    case = waiting.get_nowait()
                except queue.Empty:
                    return
                outcome = child(*case)
                with lock:
                    tell(outcome)
        finally:
            child.end()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class _Child:
    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.part = ""

    def __call__(self, part: str, kind: str, seed: int) -> Outcome:
        if part != self.part:  # faults fork, which is safe before threads and limits are there
            self.end()
            self.process, self.part = None, part
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "Testing.faults.pool"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=Path(__file__).parents[2],
                start_new_session=True,
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self.process.stdin.write(json.dumps([part, kind, seed]) + "\n")
            self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], 2 * LIMIT_S)  # its own alarm comes before
        line = self.process.stdout.readline() if ready else ""
        if line:
            return Outcome(**json.loads(line))
        self.end()
        code = self.process.returncode
        self.process = None
        hung = not ready or code == -signal.SIGALRM
        return Outcome(part, kind, seed, WRONG, said=f"no answer in {LIMIT_S} s" if hung else f"crash, code {code}")

    def end(self) -> None:
        if self.process is None:
            return
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def limit_memory() -> None:
    """At most ``LIMIT_BYTES`` of address space more than this process has now; an alarm ends what takes too long."""
    now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + LIMIT_BYTES, now + LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # what libraries print is not an answer
    from . import parts  # loads torch

    for line in sys.stdin:
        part, kind, seed = json.loads(line)
        signal.alarm(LIMIT_S)
        try:
            outcome = parts.PARTS[part](kind, seed)
        except Exception:
            said = "; ".join(traceback.format_exc().strip().splitlines()[-6:])
            outcome = Outcome(part, kind, seed, WRONG, said=f"the campaign itself: {said}")
        signal.alarm(0)
        answers.write(json.dumps(asdict(outcome)) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
