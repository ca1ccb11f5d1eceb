"""Cohorts: shards, the table that is joined from folders, several GPUs, and jobs through submitit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nephi
import pytest
import tables
from hypothesis import given
from hypothesis import strategies as st
from nephi import process
from nephi.cli import cluster, main
from nephi.cli.batch import gpu_environments, run_batch
from nephi.cli.cluster import ClusterSettings, PairsJob
from nephi.cli.cohort import shard_of
from nephi.errors import NephiError
from nephi.files.cases import Case, read_pairs
from nephi.files.writing import claim
from nephi.settings import PRESETS
from nephi.synthetic.phantom import make_phantom

_FAST = ["--iterations", "2", "--no-report", "--align", "moments"]
_FULL = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks")


@pytest.fixture
def study(tmp_path):
    """A function that writes a list of pairs of the 2D phantom; the moving image of those in ``broken`` is missing."""
    (tmp_path / "data").mkdir()
    make_phantom((96, 80), 4.0, dimension=2).write(tmp_path / "data")

    def pairs(*names: str, broken: tuple[str, ...] = ()) -> Path:
        files = [f"data/{role}{'.csv' if 'landmarks' in role else '.nii.gz'}" for role in _FULL]
        rows = [["name", *_FULL]]
        rows += [[n, files[0], "data/absent.nii.gz" if n in broken else files[1], *files[2:]] for n in names]
        path = tmp_path / "pairs.csv"
        path.write_text("\n".join(",".join(row) for row in rows) + "\n", encoding="utf-8")
        return path

    return pairs


def table(output: Path) -> dict[str, dict]:
    """Without the seconds, which no two runs share."""
    rows = tables.table(output)
    return {name: {k: v for k, v in row.items() if k != "seconds"} for name, row in rows.items()}


def times(output: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in output.glob("*/report.json")}


@given(st.integers(0, 60), st.integers(1, 20))
def test_shards_are_disjoint_complete_and_even(count, shards):
    pairs = [Case(str(k), {}) for k in range(count)]
    parts = [shard_of(pairs, f"{i}/{shards}") for i in range(1, shards + 1)]
    assert sorted((pair for part in parts for pair in part), key=pairs.index) == pairs
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", "1.0/2", ""])
def test_a_wrong_shard_is_one_line(shard):
    with pytest.raises(NephiError, match="give I/N"):
        shard_of([], shard)


@pytest.mark.slow
def test_shards_and_summarise_make_the_table_of_one_batch(study, tmp_path, capsys):
    pairs = study("c", "broken", "a", broken=("broken",))
    local, shared = tmp_path / "local", tmp_path / "shared"
    assert main(["batch", str(pairs), "--output", str(local), *_FAST]) == 1
    codes = [main(["batch", str(pairs), "--output", str(shared), "--shard", f"{i}/3", *_FAST]) for i in (3, 2, 1)]
    assert codes == [0, 1, 0]
    assert not (shared / "summary.csv").exists()  # nobody's while shards may run
    assert "nephi summarise" in capsys.readouterr().out
    assert main(["summarise", str(shared), "--pairs", str(pairs)]) == 1
    assert table(shared) == table(local) and list(table(shared)) == ["c", "broken", "a"]
    assert main(["summarise", str(shared)]) == 1  # without the list: by name
    assert list(table(shared)) == ["a", "broken", "c"]
    # a shard that ran is repeated only where it failed
    before = times(shared)
    study("c", "broken", "a")
    assert main(["batch", str(pairs), "--output", str(shared), "--shard", "2/3", *_FAST]) == 0
    assert {name: t for name, t in times(shared).items() if name != "broken"} == before
    assert main(["summarise", str(shared), "--pairs", str(pairs)]) == 0
    assert {row["status"] for row in table(shared).values()} == {"done"}


@pytest.mark.slow
def test_shards_that_overlap_run_no_pair_twice(study, tmp_path):
    """Two jobs with the same pairs, as after a requeue whose first job still runs: at once, and one after another."""
    pairs, output = study("a", "b"), tmp_path / "out"
    here = {**os.environ, "PYTHONPATH": str(Path(nephi.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nephi", "batch", str(pairs), "--output", str(output), "--shard", "1/1", *_FAST]
    made: dict[str, set[int]] = {}
    both = [subprocess.Popen(command, env=here, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    while any(one.poll() is None for one in both):
        for name, changed in times(output).items():
            made.setdefault(name, set()).add(changed)
        time.sleep(0.01)
    for one in both:
        one.communicate()
    assert set(made) == {"a", "b"} and all(len(changes) == 1 for changes in made.values())
    assert main(["summarise", str(output), "--pairs", str(pairs)]) == 0


def test_the_table_says_what_is_missing(tmp_path, capsys):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("name,fixed,moving\nnew,f,m\nstopped,f,m\nbad,f,m\n")
    output = tmp_path / "out"
    for name in ("stopped", "bad"):
        (output / name).mkdir(parents=True)
        (output / name / "nephi.log").write_text("")
    (output / "bad" / "failure.json").write_text('{"error": "no such file", "seconds": 1.5}')
    assert main(["summarise", str(output), "--pairs", str(pairs)]) == 1
    rows = table(output)
    assert [rows[n]["status"] for n in ("new", "stopped", "bad")] == ["waiting", "interrupted", "failed"]
    assert rows["bad"]["error"] == "no such file" and "0 of 3 pairs" in capsys.readouterr().out
    (output / "bad" / "failure.json").write_text("[")  # damaged: no reason to lose the table
    assert main(["summarise", str(output)]) == 1
    assert table(output)["bad"]["status"] == "interrupted"


@pytest.mark.parametrize("text", ["[", "[]", "null", "[" * 5000, '{"levels": 3}', '{"fit": {"iterations": NaN}}'])
def test_a_cohort_whose_settings_are_damaged_is_one_line(text, tmp_path, capsys):
    """Else every result would count, or none."""
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / "nephi.log").write_text("")
    (tmp_path / "out" / "settings.json").write_text(text)
    assert main(["summarise", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "settings" in line and not (tmp_path / "out" / "summary.csv").exists()


@pytest.mark.parametrize("seconds", ['"fast"', "NaN", "[]", "9" * 400])
def test_a_failure_that_is_damaged_is_none(seconds, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "failure.json").write_text(f'{{"error": "one reason", "seconds": {seconds}}}')
    assert main(["summarise", str(tmp_path)]) == 1
    assert table(tmp_path)["a"]["status"] == "waiting"


@pytest.mark.parametrize(("text", "found", "words"), [
    ('["12_0", "12_1"]', ["12_0", "12_1"], 0), ("[]", [], 0), (None, [], 0), ('["12_0"', [], 1), ("{}", [], 1),
    ('["--help"]', [], 1), ("[12]", [], 1), ("[" * 5000, [], 1),
])  # fmt: skip
def test_jobs_of_an_earlier_start_are_waited_for_or_their_list_is_told(text, found, words, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_queued", bool)
    if text is not None:
        (tmp_path / "under_way.json").write_text(text)
    told: list[str] = []
    assert cluster._earlier(tmp_path, told.append) == found
    assert len(told) == words and all("under_way.json" in line and "damaged" in line for line in told)


def test_locks_of_a_killed_batch_go_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("nephi.cli.batch.finished_report", lambda *_: object())
    monkeypatch.setattr("nephi.cli.batch.pair_row", lambda pair, status, *_: {"name": pair.name, "status": status})
    monkeypatch.setattr("nephi.cli.batch._line", lambda row: row["name"])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in (".nephi.lock", ".nephi.batch.lock"):
        (tmp_path / "a" / name).touch()
    release = claim(tmp_path / "b")  # of a batch that is at work
    run_batch([Case("a", {}), Case("b", {})], tmp_path, PRESETS["fast"], tell=lambda _: None)
    assert list((tmp_path / "a").iterdir()) == [] and (tmp_path / "b" / ".nephi.batch.lock").exists()
    release()


@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_nothing_to_summarise_is_one_line(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["summarise", str(tmp_path / folder)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.rglob("summary.csv"))


def test_planning_a_finished_cohort_writes_the_table_once(tmp_path, monkeypatch):
    """Planning may not grow with the square of the number of pairs."""
    settings, report, written = PRESETS["fast"], object(), []
    monkeypatch.setattr("nephi.cli.batch.finished_report", lambda *_: report)
    monkeypatch.setattr(
        "nephi.cli.batch.pair_row", lambda pair, status, *_, **__: {"name": pair.name, "status": status}
    )
    monkeypatch.setattr("nephi.cli.batch._line", lambda row: row["name"])
    monkeypatch.setattr("nephi.cli.batch.write_summary", lambda rows, _: written.append(len(rows)))
    rows = run_batch([Case(str(k), {}) for k in range(500)], tmp_path / "out", settings, tell=lambda _: None)
    assert len(rows) == 500 and written == [500]


@pytest.mark.parametrize(
    ("visible", "numbers"), [("0,1,3", ["0", "1", "3"]), ("", []), ("-1", []), ("GPU-8f, 2", ["GPU-8f", "2"])]
)
def test_the_gpus_that_a_process_sees(visible, numbers):
    assert process.visible_gpus({"CUDA_VISIBLE_DEVICES": visible}) == numbers


def test_gpus_are_shared_out(tmp_path, monkeypatch):
    """As many processes as GPUs see one each; the next sees the one that has become free."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert gpu_environments(1) == [{}]  # a single process takes what it sees
    seen: list[str] = []

    class Child:
        returncode = 2

        def __init__(self, environment):
            seen.append(environment["CUDA_VISIBLE_DEVICES"])
            self.polls = {"4": 3, "5": 1, "7": 3}[seen[-1]] if len(seen) < 4 else 0

        def poll(self):
            self.polls -= 1
            return None if self.polls > 0 else 2

    monkeypatch.setattr("nephi.process.start", lambda *_, environment, **__: Child(environment))
    pairs = [Case(name, {"fixed": tmp_path, "moving": tmp_path}) for name in "abcd"]
    run_batch(pairs, tmp_path / "out", PRESETS["fast"], jobs=3, tell=lambda _: None)
    assert seen[:3] == ["4", "5", "7"] and seen[3] == "5"
    seen.clear()
    monkeypatch.setattr("nephi.process.start", lambda *_, environment, **__: seen.append(environment) or Done())
    run_batch(pairs[:1], tmp_path / "one", PRESETS["fast"], jobs=3, device="cpu", tell=lambda _: None)
    assert seen[0]["CUDA_VISIBLE_DEVICES"] == "4,5,7"  # nothing to share


class Done:
    returncode = 2

    def poll(self):
        return 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--partition", "gpu"], "--partition applies to jobs"),
        (["--engine", "slurm", "--shard", "1/2"], "--shard and --engine"),
        (["--engine", "slurm", "--array", "0"], "array is 0"),
        (["--engine", "slurm", "--cluster", "{}/absent.json"], "absent.json"),
        (["--engine", "slurm", "--cluster", "{}/wrong.json"], "unknown entry 'nodes'"),
        (["--engine", "slurm", "--cluster", "{}/memory.json"], "cluster settings: memory_gb is inf, must be finite"),
        (["--engine", "slurm", "--cluster", "{}/setup.json"], "cluster settings: setup[0] is 3, expected str"),
        (["--engine", "slurm", "--cluster", "{}/sbatch.json"], "cluster settings: sbatch holds 'qos': 'a\\nb'"),
        (["--shard", "5/4"], "--shard 5/4"),
    ],
)
def test_wrong_options_of_a_cohort_are_one_line(arguments, words, tmp_path, capsys):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("name,fixed,moving\na,f,m\n")
    for name, text in (("wrong", '{"nodes": 3}'), ("memory", '{"memory_gb": 1e999}'), ("setup", '{"setup": [3]}'),
                       ("sbatch", '{"sbatch": {"qos": "a\\nb"}}')):  # fmt: skip
        (tmp_path / f"{name}.json").write_text(text)
    arguments = [argument.format(tmp_path) for argument in arguments]
    assert main(["batch", str(pairs), "--output", str(tmp_path / "out"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_jobs_make_the_table_of_a_local_batch(study, tmp_path, capsys):
    pytest.importorskip("submitit")
    pairs = study("a", "broken", "b", broken=("broken",))
    local, jobs = tmp_path / "local", tmp_path / "jobs"
    assert main(["batch", str(pairs), "--output", str(local), *_FAST]) == 1
    settings = tmp_path / "cluster.json"
    settings.write_text('{"array": 2, "minutes": 5, "cpus": 1}')
    command = ["batch", str(pairs), "--output", str(jobs), "--engine", "processes", "--cluster", str(settings), *_FAST]
    assert main(command) == 1
    assert table(jobs) == table(local)
    before = times(jobs)
    study("a", "broken", "b")
    assert main(command) == 0  # what failed is tried again, and nothing else
    assert {name: t for name, t in times(jobs).items() if name != "broken"} == before
    assert "1 pairs submitted" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the job in /proc")
def test_a_job_at_its_limit_is_requeued_and_resumes(study, tmp_path):
    """The signal of the limit comes when some pairs are done, as SLURM and submitit send it."""
    pytest.importorskip("submitit")
    pairs, output = study("a", "b"), tmp_path / "out"
    here = {**os.environ, "PYTHONPATH": str(Path(nephi.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nephi", "batch", str(pairs), "--output", str(output), "--engine", "processes"]
    batch = subprocess.Popen([*command, "--array", "1", *_FAST], env=here, stdout=subprocess.PIPE, text=True)
    try:
        while not (output / "b").is_dir():  # until the first has ended: one that is just being written is taken back
            assert batch.poll() is None
            time.sleep(0.05)
        before = times(output)
        os.kill(job_in(output), signal.SIGUSR2)
        batch.communicate(timeout=300)
    finally:
        batch.kill()
    assert batch.returncode == 0 and {row["status"] for row in table(output).values()} == {"done"}
    assert {name: changed for name, changed in times(output).items() if name in before} == before
    assert "Requeued job" in "".join(p.read_text(encoding="utf-8") for p in (output / ".jobs").glob("*.out"))


def job_in(output: Path) -> int:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"submitit.core._submit" in line and str(output / ".jobs").encode() in line:
            return int(entry.name)
    raise AssertionError("no job runs")


@pytest.mark.parametrize(("ran_s", "given_up"), [(179, True), (5, False)])
def test_a_pair_that_needs_longer_than_a_job_may_run_is_given_up(tmp_path, monkeypatch, ran_s, given_up):
    """Else it would be requeued for ever; not where the job only made way for another, and the others go on."""
    pytest.importorskip("submitit")
    monkeypatch.setattr("nephi.process.start", lambda *_, **__: Done())
    pairs = [Case(name, {"fixed": tmp_path, "moving": tmp_path}) for name in "ab"]
    how = {"jobs": 1, "auto_mask": True, "device": "cpu", "threads": 1, "outputs": ()}
    job = PairsJob(pairs, tmp_path / "out", PRESETS["fast"], how, limit_s=180)
    job.began = time.time() - ran_s, 2  # and nothing has ended since
    job.checkpoint().function()
    failures = {p.parent.name: json.loads(p.read_text())["error"] for p in (tmp_path / "out").glob("*/failure.json")}
    assert set(failures) == {"a", "b"} and "limit" not in failures["b"]
    assert ("limit of 3 minutes" in failures["a"]) == given_up


def test_cluster_settings_are_documented():
    text = (Path(__file__).parents[2] / "docs" / "cohorts.md").read_text(encoding="utf-8")
    for name in ClusterSettings.__dataclass_fields__:
        assert f"`{name}`" in text, name


def test_a_list_is_read_once_for_all_shards(tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("name,fixed,moving\n" + "".join(f"{k},f,m\n" for k in range(7)))
    names = [pair.name for i in (1, 2) for pair in shard_of(read_pairs(pairs), f"{i}/2")]
    assert names == ["0", "2", "4", "6", "1", "3", "5"]
