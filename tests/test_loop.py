"""Whole rounds: what they leave, on any ranks, and when they are killed anywhere."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from ranks import run_ranks
from small_run import make_inputs, row_files, small_config, whole

from nemo_sdg.store import Run, StageStore


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    import nemo.collections.llm  # noqa: F401  (once, before any rank is forked)

    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """Two rounds on one rank, never disturbed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run_ranks(whole, small_config(inputs), out)
    return out


def first_round(inputs, out, **topology):
    """The row files of a run of one round in fp64, without its evaluation, which rounds in another order."""
    config = small_config(inputs, rounds=1)
    config.models.dtype = "fp64"
    run_ranks(whole, config, out, **topology)
    return {name: data for name, data in row_files(out).items() if "evaluation" not in name}


@pytest.fixture(scope="module")
def rows_of_one_rank(inputs, tmp_path_factory):
    return first_round(inputs, tmp_path_factory.mktemp("one") / "run")


def test_a_run_leaves_what_the_design_says(finished):
    for number in range(2):
        folder = finished / f"round-{number}"
        for stage in ("prompts", "responses", "scored", "decisions"):
            assert StageStore.finished(folder / stage).done, stage
        for name in ("datasets/sft.jsonl", "datasets/reward.jsonl", "datasets/README.md", "evaluation.json"):
            assert (folder / name).is_file(), name
        for kind in ("policy", "reward"):
            assert {"weights", "context", "model_config.yaml"} <= {p.name for p in (folder / kind).iterdir()}


def test_every_row_is_accounted_for(finished):
    for number in range(2):
        counts = [
            StageStore.finished(finished / f"round-{number}" / s).totals for s in ("responses", "scored", "decisions")
        ]
        assert counts[0]["rows_in"] == 12 * 3
        for before, after in zip(counts, counts[1:]):
            assert after["rows_in"] == before["kept"]
        if number == 0:
            assert 0 < counts[2]["kept"] < counts[2]["rows_in"], "the threshold selects nothing or everything"
        sft = (finished / f"round-{number}" / "datasets" / "sft.jsonl").read_bytes().count(b"\n")
        assert sft == counts[2]["kept"]


def test_the_second_round_uses_what_the_first_has_trained(finished):
    first, second = (next(StageStore.finished(finished / f"round-{r}" / "scored").read())["provenance"] for r in (0, 1))
    assert first["round"] == 0 and second["round"] == 1
    assert first["policy"] != second["policy"] and first["reward"] != second["reward"]
    prompts = [[row["id"] for row in StageStore.finished(finished / f"round-{r}" / "prompts").read()] for r in (0, 1)]
    assert not set(prompts[0]) & set(prompts[1]), "the second round takes the next prompts"


def test_a_finished_run_is_left_as_it_is(inputs, finished):
    def state():
        return {
            p: p.stat().st_mtime_ns
            for p in finished.rglob("*")
            if p.is_file() and p.name not in ("run.lock", "events.jsonl")
        }

    before = state()
    run_ranks(whole, small_config(inputs), finished)
    assert state() == before


@pytest.mark.parametrize(
    "topology", [{"tp": 2}, {"pp": 2}, {"dp": 2}, {"tp": 2, "pp": 2}], ids=["tp2", "pp2", "dp2", "tp2pp2"]
)
def test_first_round_selects_the_same_rows_on_any_ranks(inputs, rows_of_one_rank, tmp_path, topology):
    """fp64: every row file of the first round is equal byte for byte, scores and decisions too."""
    assert len(rows_of_one_rank) > 12 and first_round(inputs, tmp_path / "run", **topology) == rows_of_one_rank


# What must have appeared when the run is killed, and how long it then goes on.
MOMENTS = [
    ("round-0/responses/part-*", 0.0),
    ("round-0/scored/part-00001*", 0.0),
    ("round-0/datasets", 0.05),
    ("round-0/.policy.fit/fit", 0.3),
    ("round-0/policy", 0.0),
    ("round-0/evaluation.json", 0.02),
    ("round-1/responses/part-*", 0.1),
    ("round-1/reward", 0.0),
]


def test_killed_anywhere_it_continues_and_ends_the_same(inputs, finished, tmp_path):
    """One run is killed at eight moments, with SIGKILL to a whole job, and ends with the rows of an undisturbed one."""
    config, out = small_config(inputs), tmp_path / "run"
    killed = 0
    for pattern, delay in MOMENTS:
        job = os.fork()
        if job == 0:
            os.setpgid(0, 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            run_ranks(whole, config, out)
            os._exit(0)
        deadline = time.monotonic() + 60
        while not list(out.glob(pattern)) and os.waitpid(job, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(delay)
        try:
            os.killpg(job, signal.SIGKILL)
            killed += 1
            os.waitpid(job, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        assert list(out.glob(pattern)), pattern
        _wait_for_the_lock(out)
    run_ranks(whole, config, out)
    assert killed >= 6, "too few kills hit a living run"
    assert row_files(out) == row_files(finished)
    leftovers = [p for p in out.rglob("*") if ".tmp" in p.name or p.name.endswith(".fit")]
    assert not leftovers


def _wait_for_the_lock(out: Path) -> None:
    """The killed ranks are gone when the kernel has released their lock."""
    import fcntl

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with open(out / "run.lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                time.sleep(0.05)


def test_two_runs_at_once_are_refused(inputs, tmp_path):
    config = small_config(inputs)

    def second(mesh):
        with Run.open(tmp_path / "run", config, writer=True), pytest.raises(Exception, match="in use"):
            Run.open(tmp_path / "run", config, writer=True)

    run_ranks(second)


def test_evaluation_before_stands_in_every_round(finished):
    rounds = [json.loads((finished / f"round-{r}" / "evaluation.json").read_text()) for r in (0, 1)]
    assert rounds[0]["before"] == rounds[1]["before"]
    assert rounds[0]["policy"]["n"] == 6 and rounds[0]["reward"]["helpfulness"]["n"] == 12
    for found in rounds:
        assert found["win_rate"]["n"] == 6 and set(found["drift"]) == set(found["reward"])
        assert set(found["rewardbench"]["subsets"]) == {"hep-go", "donotanswer", "mt-bench-easy"}
