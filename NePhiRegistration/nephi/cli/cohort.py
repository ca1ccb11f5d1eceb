"""``nephi batch``: who registers the pairs of a list: this process, one shard of several, or a cluster's jobs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ..errors import NephiError
from ..files.cases import SUMMARY, Case, read_pairs
from ..paths import check_spared
from .batch import run_batch
from .cluster import cluster_settings, run_on_cluster
from .options import outputs_from, settings_from
from .summarise import ended


def shard_of(pairs: list[Case], shard: str) -> list[Case]:
    """Part I of N of a list, for ``I/N`` with I from 1: every Nth pair, so that the parts take about as long.

    Raises NephiError for anything else. A part may be empty.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise NephiError(f"--shard {shard}: give I/N, such as 1/4 to 4/4")
    return pairs[int(match[1]) - 1 :: int(match[2])]


def batch_command(options) -> int:
    settings = settings_from(options)
    if options.jobs < 1:
        raise NephiError(f"--jobs {options.jobs}: must be at least 1")
    cluster = cluster_settings(options)
    if cluster is not None and options.shard:
        raise NephiError("--shard and --engine: the engine distributes the pairs itself; give only one of them")
    outputs = outputs_from(options)
    pairs, output = read_pairs(options.pairs), Path(options.output)
    check_spared([output / SUMMARY], vars(options))
    if options.shard:
        pairs = shard_of(pairs, options.shard)
    how = {
        "jobs": options.jobs,
        "auto_mask": not options.no_auto_mask,
        "device": options.device,
        "threads": options.threads,
        "outputs": outputs,
        "tolerances": None if options.tolerances is None else Path(options.tolerances).absolute(),
        "also": tuple(options.also),
    }

    def tell(line: str) -> None:
        print(line, flush=True)

    try:
        if cluster is not None:
            rows = run_on_cluster(options.engine, pairs, output, settings, cluster, how, tell)
        else:
            rows = run_batch(pairs, output, settings, **how, shared=bool(options.shard), tell=tell)
    except OSError as error:
        raise NephiError(f"cannot write to {error.filename or output}: {error.strerror or error}") from None
    except KeyboardInterrupt:
        if options.engine == "slurm":
            print("nephi: interrupted; the jobs continue, and the same command waits for them again", file=sys.stderr)
        else:
            print("nephi: interrupted; the same command resumes with the unfinished pairs", file=sys.stderr)
        return 130
    if options.shard:
        done = sum(row["status"] == "done" for row in rows)
        print(f"{done} of {len(rows)} pairs of shard {options.shard} done; for the table: nephi summarise {output}")
        return int(done < len(rows))
    return ended(rows, output)
