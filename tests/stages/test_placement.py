"""Generation and scoring in turn, together and split: the same rows byte for byte, at once, and after a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from folders import make_folder, make_tokenizer, small_shape
from ranks import run_ranks
from small_run import row_files

from nemo_sdg import loop
from nemo_sdg.config import (
    Data,
    Generate,
    Models,
    PhaseTopology,
    RewardTraining,
    RunConfig,
    Score,
    Select,
    Topology,
    Training,
)
from nemo_sdg.console import Console
from nemo_sdg.errors import RowError, StoreError
from nemo_sdg.parallel.topology import grids
from nemo_sdg.store import Run, StageStore

STAGES = ("prompts", "generate", "score")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Two random models and 22 prompts: a few are too long to be answered, others to be scored with their answers."""
    root = tmp_path_factory.mktemp("placement")
    tokenizer = make_tokenizer(root / "t.model")
    make_folder(root / "policy", dataclasses.replace(small_shape(), seq_length=128), tokenizer, seed=1)
    # The reward template brings a long system text, so a longer prompt does not fit.
    make_folder(root / "reward", dataclasses.replace(small_shape(), seq_length=192), tokenizer, reward=True, seed=2)
    rows = [{"id": f"p{i}", "prompt": f"{'abcdefgh'[i % 8]}{i} " * (1 + 9 * (i % 5 == 3))} for i in range(22)]
    for i in (1, 8, 9, 10, 11):
        rows[i]["prompt"] = "x y z " * 60
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def small(
    root: Path, placement: str, generate: PhaseTopology | None = None, score: PhaseTopology | None = None
) -> RunConfig:
    return RunConfig(
        models=Models(instruct=f"{root}/policy", reward=f"{root}/reward", dtype="fp64", placement=placement),
        generate=Generate(samples=2, max_tokens=12, slots=4, prefill_tokens=64, group_size=4,
                          topology=generate or PhaseTopology()),
        score=Score(topology=score or PhaseTopology()),
        select=Select(minimum={}), data=Data(prompts=f"{root}/prompts.jsonl"), sft=Training(enabled=False), reward=RewardTraining(enabled=False),
    )  # fmt: skip


def rounds(mesh, config: RunConfig, out: Path) -> None:
    """The whole loop, in which nothing is trained."""
    config = dataclasses.replace(config, topology=Topology(tp=mesh.tp, pp=mesh.pp, dp=mesh.dp))
    with Run.open(out, config, writer=mesh.writer) as opened:
        loop.run(config, opened, mesh, Console(speaks=False))
        mesh.barrier()


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("in_turn") / "run"
    run_ranks(rounds, small(inputs, "in_turn"), out)
    files = row_files(out)
    generated, scored = (StageStore.finished(out / "round-0" / name) for name in ("responses", "scored"))
    assert generated.totals["rows_in"] == 44
    assert generated.totals["faulty"] == {"the prompt is longer than the context": 10}
    assert scored.totals["rows_in"] == generated.totals["kept"] == 34
    assert scored.totals["faulty"]["the conversation is longer than the context"] > 2 and scored.totals["kept"] > 15
    assert scored.totals["kept"] + sum(scored.totals["faulty"].values()) == 34
    assert len(scored.groups) == 6 and "round-0/scored/part-00002-n0-e3b0c44298fc1c14.jsonl" in files, "an empty group"
    return files


def tp(count: int) -> PhaseTopology:
    return PhaseTopology(tp=count)


WAYS = {
    "together on one rank": (1, "together", None, None),
    "split over two": (2, "split", None, None),
    "split 2 + 1": (3, "split", tp(2), None),
    "split 1 + 2": (3, "split", None, PhaseTopology(pp=2)),
    "split 2 + 2": (4, "split", PhaseTopology(dp=2), tp(2)),
    "together, cut alike": (2, "together", tp(2), tp(2)),
    "together in stages": (2, "together", PhaseTopology(pp=2), PhaseTopology(pp=2)),
    "together, cut differently": (2, "together", None, tp(2)),
    "in turn, cut differently": (2, "in_turn", tp(2), PhaseTopology(pp=2)),
}


def overlapping(mesh, config: RunConfig, out: Path) -> None:
    """`rounds`, in which the last responses wait for the first scores: one stage after the other would fail."""
    commit = StageStore.commit

    def gated(self, group, rows):
        deadline = time.monotonic() + 30
        while self.dir.name == "responses" and group.index == 5 and not list(out.glob("round-0/scored/part-*")):
            assert time.monotonic() < deadline, "nothing was scored while responses were still generated"
            time.sleep(0.02)
        commit(self, group, rows)

    StageStore.commit = gated  # in this rank's own process
    rounds(mesh, config, out)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_bytes_in_every_placement(way, inputs, finished, tmp_path):
    world, placement, generate, score = WAYS[way]
    config, out = small(inputs, placement, generate, score), tmp_path / "run"
    run_ranks(rounds if placement == "in_turn" else overlapping, config, out, dp=world)
    assert row_files(out) == finished


def test_split_ranks_hold_one_model_each(inputs, tmp_path, monkeypatch):
    from nemo_sdg.engine import residents

    loaded, load = [], residents.load_model

    def noted(path, mesh, **settings):
        loaded.append((Path(path).name, mesh.tp, mesh.first))
        return load(path, mesh, **settings)

    monkeypatch.setattr(residents, "load_model", noted)

    def names(mesh):
        rounds(mesh, small(inputs, "split", tp(2)), tmp_path / "run")
        return loaded

    assert run_ranks(names, dp=3) == [[("policy", 2, 0)], [("policy", 2, 0)], [("reward", 1, 2)]]


def test_a_local_scorer_gets_one_group_a_call_and_a_generator_all_groups(inputs, tmp_path, monkeypatch):
    """What is packed into one pass decides the last digits in fp32; slots must not stay idle at the end of a group."""
    from nemo_sdg.engine.backends.local import LocalGenerator, LocalScorer

    calls = {"generate": [], "score": []}
    for kind, name in ((LocalGenerator, "generate"), (LocalScorer, "score")):

        def noted(self, rows, *rest, _call=getattr(kind, name), _seen=calls[name]):
            _seen.append([])
            yield from _call(self, (_seen[-1].append(row.id) or row for row in rows), *rest)

        monkeypatch.setattr(kind, name, noted)

    def ids(mesh):
        rounds(mesh, small(inputs, "in_turn"), tmp_path / "run")
        return calls

    (seen,) = run_ranks(ids)
    groups = StageStore.finished(tmp_path / "run/round-0/responses")
    assert seen["generate"] == [[f"p{i}" for i in range(22)]]
    assert seen["score"] == [[row["id"] for row in groups.rows_of(group)] for group in groups.groups]


def killed(inputs: Path, out: Path, config: RunConfig, world: int, pattern: str) -> None:
    """Starts a job and ends all of it when a file of this pattern has appeared."""
    job = os.fork()
    if job == 0:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        run_ranks(rounds, config, out, dp=world)
        os._exit(0)
    with contextlib.suppress(OSError):
        os.setpgid(job, job)  # also here: the file may be there before the job has begun
    deadline = time.monotonic() + 60
    while not list(out.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(job, signal.SIGKILL)
    os.waitpid(job, 0)
    assert list(out.glob(pattern))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # the kernel releases the lock of the killed rank
        try:
            Run.open(out, config, writer=True).close()
            return
        except StoreError:
            time.sleep(0.05)


def test_a_kill_in_the_middle_goes_on_in_any_placement(inputs, finished, tmp_path):
    out = tmp_path / "run"
    killed(inputs, out, small(inputs, "split"), 2, "round-0/scored/part-00000*")
    assert not (out / "round-0/responses/SUCCESS.json").exists() and not (out / "round-0/scored/SUCCESS.json").exists()
    killed(inputs, out, small(inputs, "together"), 1, "round-0/responses/part-00003*")
    left = {name: len(list(out.glob(f"round-0/{name}/part-*"))) for name in ("responses", "scored")}
    assert 0 < left["scored"] <= left["responses"] < 6
    run_ranks(rounds, small(inputs, "split", tp(2)), out, dp=3)
    assert row_files(out) == finished
    assert not [path for path in out.rglob("*") if ".tmp" in path.name]


def test_scores_that_were_left_are_made_for_responses_that_are_there(inputs, finished, tmp_path):
    """All responses and no scores; then all scores but one, with its responses gone too."""
    out = tmp_path / "run"
    run_ranks(rounds, small(inputs, "together"), out)
    for file in [*out.glob("round-0/scored/*"), *out.glob("round-0/decisions/*"), out / "round-0/evaluation.json"]:
        file.unlink()
    shutil.rmtree(out / "round-0/datasets")
    (out / "round-0/responses/SUCCESS.json").unlink()
    run_ranks(rounds, small(inputs, "together"), out, dp=2)
    assert row_files(out) == finished
    for name in ("responses", "scored"):
        next((out / "round-0" / name).glob("part-00004*")).unlink()
        (out / "round-0" / name / "SUCCESS.json").unlink()
    run_ranks(rounds, small(inputs, "together", None, tp(2)), out, dp=2)
    assert row_files(out) == finished


def test_scores_of_other_responses_are_refused(inputs, finished, tmp_path):
    """A group of responses that was made again with another text, under scores that are there already."""
    out = tmp_path / "run"
    run_ranks(rounds, small(inputs, "in_turn"), out)
    store = StageStore.finished(out / "round-0/responses")
    rows = store.rows_of(store.groups[0])
    for name in ("responses", "scored"):
        (out / "round-0" / name / "SUCCESS.json").unlink()
    next((out / "round-0/responses").glob("part-00000*")).unlink()
    rows[0]["response"] = "another"
    store.commit(store.groups[0], rows)

    def refused(mesh):
        with pytest.raises(StoreError, match="these scores are of another response"):
            rounds(mesh, small(inputs, "in_turn"), out)

    run_ranks(refused)


@pytest.mark.parametrize("placement", ["in_turn", "split"])
def test_strict_names_the_row(inputs, tmp_path, placement):
    config = small(inputs, placement)
    config.run.strict = True

    def refused(mesh):
        try:
            rounds(mesh, config, tmp_path / "run")
        except RowError as error:
            return str(error)
        except RuntimeError:
            return "its peer was gone"

    if placement == "in_turn":
        (said,) = run_ranks(refused)
    else:
        with pytest.raises(AssertionError, match="ended without a result"):  # the scorer waits, and is ended
            run_ranks(refused_and_left, config, tmp_path / "run", dp=2)
        said = (tmp_path / "run" / "said").read_text()
    assert said.startswith("row p1#0: the prompt is longer than the context, found ")
    assert "round-0" not in [path.name for path in (tmp_path / "run").glob("round-0/responses/SUCCESS.json")]


def refused_and_left(mesh, config, out):
    try:
        rounds(mesh, config, out)
    except RowError as error:
        (out / "said").write_text(str(error))
        os._exit(2)


def test_grids_of_a_launch_without_training_need_not_fill_the_topology():
    config = RunConfig(sft=Training(enabled=False), reward=RewardTraining(enabled=False))
    config.topology = Topology(tp=8, pp=12)
    config.generate.backend = config.score.backend = "endpoint"
    assert grids(config, 1).train.size == grids(config, 1).generate.size == 1
