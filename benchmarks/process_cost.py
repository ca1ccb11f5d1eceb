"""Run a command and write what it cost: python process_cost.py RESULT.json LOG LIMIT_S COMMAND...

LIMIT_S: CPU seconds after which the command is stopped; 0: never.

A process of its own because Linux counts the memory of the process that starts a child towards the
child's peak; this one imports next to nothing.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time


def main(result: str, log: str, limit_s: str, *command: str) -> None:
    if int(limit_s):
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s), int(limit_s)))  # the child inherits it
    start = time.perf_counter()
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [(os.POSIX_SPAWN_OPEN, 1, log, flags, 0o644), (os.POSIX_SPAWN_DUP2, 1, 2)]
    child = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    _, status, usage = os.wait4(child, 0)  # of the child and of everything it started and waited for
    unit = 1 if sys.platform == "darwin" else 1024
    cost = {
        "exit_code": os.waitstatus_to_exitcode(status),
        "wall_s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_memory_mb": usage.ru_maxrss * unit / 1e6,
    }
    with open(result, "w") as file:
        json.dump(cost, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
