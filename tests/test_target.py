"""A round with a target: exactly so many rows, wave by wave, however often it is killed and on any ranks."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from fields import changed, leaves
from ranks import run_ranks
from small_run import make_inputs, row_files, small_config

import nemo_sdg.loop
from nemo_sdg import fork, tracing
from nemo_sdg.config import (
    Budget, Evaluate, Revise, RewardTraining, RunConfig, Select, Topology, Training, dataset_settings, identity, to_yaml
)  # fmt: skip
from nemo_sdg.config import Run as RunSettings
from nemo_sdg.config.evaluating import FILES
from nemo_sdg.console import Console
from nemo_sdg.engine import residents
from nemo_sdg.errors import UserError
from nemo_sdg.evaluation import report
from nemo_sdg.quality.revision import root_of
from nemo_sdg.records import Decision
from nemo_sdg.stages import assemble, select
from nemo_sdg.store import Run, StageStore, commit_json, commit_rows, parts, read_json, spent
from nemo_sdg.store.verifying import verify_run

TARGET = 18


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A column of the prompts is called like one of ours."""
    root = make_inputs(tmp_path_factory.mktemp("inputs"))
    prompts = [json.loads(line) for line in (root / "prompts.jsonl").read_text().splitlines()]
    commit_rows(root / "prompts.jsonl", [{**row, "revises": row["id"]} for row in prompts])
    return root


def settings(inputs: Path, target: int | None = TARGET, **select) -> RunConfig:
    """18 candidates a wave, of which about half pass; nothing is trained."""
    off = {"sft": Training(enabled=False), "reward": RewardTraining(enabled=False)}
    config = dataclasses.replace(small_config(inputs, rounds=1), **off)
    config.data.prompts_per_round, config.models.dtype = 6, "fp64"
    config.evaluate = Evaluate()
    config.select = Select(**{"minimum": {"helpfulness": 0.0}, "unique": False, "target": target, **select})
    config.revise = Revise(passes=1, margin=0.5, request="{{ prompt }}")
    return config


def do(mesh, config, out, told=None):
    config = dataclasses.replace(config, topology=Topology(tp=mesh.tp, pp=mesh.pp, dp=mesh.dp))
    stream = io.StringIO()
    with Run.open(out, config, writer=mesh.writer) as opened:
        nemo_sdg.loop.run(config, opened, mesh, Console(stream, speaks=mesh.writer))
        mesh.barrier()
    return stream.getvalue()


def decisions(out: Path) -> list[Decision]:
    return [Decision.from_row(row) for row in StageStore.finished(out / "round-0/decisions").read()]


def counting(mesh, config, out) -> tuple[str, Counter[str], list[int]]:
    """What `do` says, how often the rows of each file in the round's folder were read, and how many rounds' figures of
    candidates there were when datasets were assembled."""
    counts, check, left = Counter(), parts.check_part, []

    def counted(file: Path) -> bytes:
        counts[str(file.relative_to(out / "round-0"))] += 1
        return check(file)

    def watched(context) -> dict:
        left.append(sum(type(one) is select.Candidates for one in gc.get_objects()))
        return assemble.run(context)

    stages = mock.patch.dict(nemo_sdg.loop.STAGES, assemble=SimpleNamespace(run=watched))
    with mock.patch.object(parts, "check_part", counted), stages:
        return do(mesh, config, out), counts, left


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("target") / "run"
    return out, *run_ranks(counting, settings(inputs), out)[0]


@pytest.fixture(scope="module")
def finished(made):
    return made[:2]


def test_exactly_as_many_rows_as_were_asked_for(finished):
    out, said = finished
    rows = decisions(out)
    kept = [row for row in rows if row.kept]
    assert len(kept) == len({row.id for row in kept}) == len({root_of(row) for row in kept}) == TARGET
    assert (out / "round-0/datasets/sft.jsonl").read_bytes().count(b"\n") == TARGET
    waves = [row.provenance.get("wave", 0) for row in rows]
    assert len(set(waves)) > 1, "one wave was enough, so this shows nothing"
    assert min(row.scalar for row in kept) >= max(
        (row.scalar for row in rows if row.reason == f"beyond the target of {TARGET}"), default=-9
    )
    totals = StageStore.finished(out / "round-0/decisions").totals
    assert totals["rows_in"] == len(rows) and totals["kept"] == TARGET
    assert f"{TARGET} rows accepted" in said and "more candidates" not in said and "candidates, " in said


def test_no_wave_is_read_more_often_because_others_follow(made):
    """Of each wave: by scoring itself, by revision for figures and for texts, by selection when it is new and at the end."""
    out, _, reads, _ = made
    waves = max(int(wave.name[5:]) for wave in (out / "round-0").glob("wave-*"))
    assert waves > 1, "too few waves, so this shows nothing"
    for part in ("scored", "revise-1/scored"):
        places = [part, *(f"wave-{wave}/{part}" for wave in range(1, waves + 1))]
        counts = [[reads[file] for file in reads if file.startswith(f"{place}/part-")] for place in places]
        assert any(counts) and all(3 <= count <= 5 for some in counts for count in some)


def test_what_selection_knew_is_gone_when_datasets_are_made_and_models_trained(made):
    assert made[3] == [0]


def test_a_prompt_that_comes_again_has_responses_of_its_own(finished):
    """24 prompts, six a wave: from the fifth wave on they come again."""
    out, _ = finished
    rows = decisions(out)
    assert len({row.id for row in rows}) == len(rows)


def test_versions_go_back_to_answers_and_only_the_best_is_kept(finished):
    out, _ = finished
    rows = decisions(out)
    revised = [row for row in rows if "root" in row.provenance]
    assert revised and all(row.provenance["revision"] == 1 for row in revised)
    by_id = {row.id: row for row in rows}
    for row in revised:
        first = by_id[row.provenance["root"]]
        assert row.messages == first.messages and row.prompt_id == first.prompt_id
        assert row.extra == first.extra and row.extra["revises"] == row.prompt_id.partition("~")[0]
        assert -0.5 <= first.scores["helpfulness"] < 0, "it was not near enough, or good enough"
    (won,) = StageStore.finished(out / "round-0/decisions").totals["revised"]
    assert won["asked"] == len(revised) and won["after"] >= won["before"]


def test_the_stage_alone_selects_from_the_same_waves(inputs, finished, tmp_path):
    """From as many as a run has needed, whatever was made since; too few are an error and leave nothing behind."""
    out, config = tmp_path / "run", settings(inputs)
    shutil.copytree(finished[0], out)
    shutil.rmtree(out / "round-0/decisions")
    last = max((out / "round-0").glob("wave-*"), key=lambda wave: int(wave.name[5:]))

    def stage(mesh):
        with Run.open(out, config, writer=True) as opened:
            return nemo_sdg.loop.run_stage("select", config, opened, mesh, Console(speaks=False), round=0)

    last.rename(tmp_path / "last")

    def refused(mesh):
        with pytest.raises(UserError, match=f"not reached yet.*select.target = {TARGET}.*nemo-sdg run"):
            stage(mesh)

    run_ranks(refused)
    assert not (out / "round-0/decisions").exists()
    (tmp_path / "last").rename(last)
    shutil.copytree(last, last.with_name(f"wave-{int(last.name[5:]) + 1}"))
    assert run_ranks(stage)[0]["kept"] == TARGET
    theirs, ours = (row_files(run) for run in (finished[0], out))
    assert {name: theirs[name] for name in theirs if "decisions" in name} == {
        name: ours[name] for name in ours if "decisions" in name
    }


@pytest.mark.parametrize("topology", [{"dp": 2}, {"tp": 2}], ids=["dp2", "tp2"])
def test_the_same_rows_on_any_ranks(inputs, finished, tmp_path, topology):
    run_ranks(do, settings(inputs), tmp_path / "run", **topology)
    assert row_files(tmp_path / "run") == row_files(finished[0])


def test_stopped_after_any_wave_it_goes_on(inputs, finished, tmp_path):
    """A budget stops it, with the reason and the figures; a larger one goes on from there."""
    out, config = tmp_path / "run", settings(inputs)
    for most in (1, 30, 50):
        config.budget = Budget(candidates=most)

        def refused(mesh, config=config):
            with pytest.raises(UserError) as caught:
                do(mesh, config, out)
            return str(caught.value)

        said = run_ranks(refused)[0]
        assert f"of {TARGET} rows accepted" in said and "budget.candidates" in said and "raise budget.candidates" in said
        before = row_files(out)
    config.budget = Budget()
    run_ranks(do, config, out)
    assert before.items() <= row_files(out).items() and row_files(out) == row_files(finished[0])


@pytest.mark.parametrize("budget", [Budget(tokens=1), Budget(hours=1e-9)], ids=["tokens", "hours"])
def test_other_budgets(inputs, tmp_path, budget):
    config = dataclasses.replace(settings(inputs), budget=budget)

    def refused(mesh):
        with pytest.raises(UserError, match="the budget is spent"):
            do(mesh, config, tmp_path / "run")

    run_ranks(refused)


def test_hours_of_an_earlier_start_count(inputs, tmp_path, monkeypatch):
    """Each start alone would be far below the budget: the rows that come, and the time before the kill, are noted."""
    config, out = dataclasses.replace(settings(inputs), budget=Budget(hours=1000.0)), tmp_path / "run"

    def killed(mesh):
        monkeypatch.setattr(spent, "EVERY_S", 0.0)
        monkeypatch.setattr(nemo_sdg.loop.STAGES["score"], "run", lambda context: os._exit(9))
        do(mesh, config, out)

    with pytest.raises(AssertionError, match="without a result"):
        run_ranks(killed)
    noted = read_json(out / "round-0" / spent.FILE)["hours"]
    assert 0 < noted < 1
    commit_json(out / "round-0" / spent.FILE, {"hours": noted + 1000})

    def refused(mesh):
        with pytest.raises(UserError, match="budget.hours: the budget is spent"):
            do(mesh, config, out)

    run_ranks(refused)
    config.budget = Budget(hours=2000.0)
    run_ranks(do, config, out)
    assert len([row for row in decisions(out) if row.kept]) == TARGET and verify_run(out, Console(io.StringIO())) == []


def test_the_report_tells_of_every_part(finished):
    result = report.read(finished[0])
    stages = [rows.stage for rows in result.rows]
    for stage in ("generate", "revise, revision 1", "generate, wave 1", "score, wave 1, revision 1", "select"):
        assert stage in stages, stage
    stream = io.StringIO()
    report.show(result, Console(stream))
    assert "mean scalar before" in stream.getvalue()


def test_every_part_is_verified_and_traced(finished, capsys):
    out, _ = finished
    assert verify_run(out, Console(io.StringIO())) == []
    kept = [row for row in decisions(out) if row.kept]
    (wave, *_), (revised, *_) = ([row.id for row in kept if row.provenance.get(name)] for name in ("wave", "revision"))
    for name in (wave, revised):
        assert tracing.verify_row(out, name) == 0
        assert f"{name} is in round-0/datasets/sft.jsonl" in capsys.readouterr().out
    part = next((out / "round-0").glob("wave-*/revise-1/scored/part-*"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-3])
    (problem,) = verify_run(out, Console(io.StringIO()))
    part.write_bytes(whole)
    assert part.name in problem and verify_run(out, Console(io.StringIO())) == []
    for name in ("wave-1", "wave-1/scored", "revise-1", "wave-1/revise-1/prompts"):
        folder = out / "round-0" / name
        folder.rename(out / "logs/lost")
        (problem,) = verify_run(out, Console(io.StringIO()))
        (out / "logs/lost").rename(folder)
        assert f"round-0/{name}" in problem and "is not there" in problem


# ---- fork


def test_a_fork_with_another_threshold_runs_no_model_and_gives_the_rows_of_a_whole_run(
    inputs, finished, tmp_path, monkeypatch, capsys
):
    """The target is lower, so that the waves which are there are enough."""
    new, words = tmp_path / "new", ["select.minimum.helpfulness=0.1", "select.target=9", "revise.passes=0"]
    assert fork.fork(finished[0], new, words) == 0
    said = capsys.readouterr().out
    assert "select.minimum.helpfulness 0.0 -> 0.1" in said and f"nemo-sdg run {new}/run.yaml --out {new}" in said
    config = settings(inputs, target=9, minimum={"helpfulness": 0.1})
    config.revise = dataclasses.replace(config.revise, passes=0)

    def without_models(mesh):
        monkeypatch.setattr(residents, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
        return do(mesh, config, new)

    run_ranks(without_models)
    run_ranks(do, config, tmp_path / "whole")
    assert len([row for row in decisions(new) if row.kept]) == 9
    names = {name for name in row_files(tmp_path / "whole") if "wave" not in name}
    assert {name: row_files(new)[name] for name in names} == {
        name: row_files(tmp_path / "whole")[name] for name in names
    }


@pytest.mark.parametrize(
    ("words", "reused"),
    [
        ([], {"prompts", "responses", "scored", "decisions", "datasets"}),
        (["evaluate.max_tokens=3"], {"prompts", "responses", "scored", "decisions", "datasets"}),
        (["sft.steps=4", "models.base=x"], {"prompts", "responses", "scored", "decisions", "datasets"}),
        (["data.licence=mit"], {"prompts", "responses", "scored", "decisions"}),
        (["select.per_prompt=1"], {"prompts", "responses", "scored"}),
        (["score.backend=hf"], {"prompts", "responses"}),
        (["generate.temperature=0.5"], {"prompts"}),
        (["data.prompts_per_round=5"], set()),
        (["generate.slots=4", "topology.tp=2", "budget.tokens=5"], {"prompts", "responses", "scored", "decisions", "datasets"}),
    ],
)  # fmt: skip
def test_what_a_change_leaves(finished, words, reused):
    before = fork.from_yaml(finished[0] / "run.yaml")
    after = fork.load(str(finished[0] / "run.yaml"), words)
    steps = [step for step in fork.plan(finished[0], before, after) if "/" not in step.name]
    assert {step.name for step in steps if step.reused} - {"evaluation.json"} == reused


@pytest.mark.parametrize(
    ("word", "reused"),
    [
        ("models.instruct=x", False), ("models.reward=x", False), ("score.backend=hf", False), ("data.licence=mit", True),
        ("reward.outputs.truth=0", False), ("generate.endpoint.model=m2", False),
    ],
)
def test_figures_of_other_models_are_not_taken_over(finished, word, reused):
    """Nothing is trained here, so that the models of before are those that are measured."""
    before = fork.from_yaml(finished[0] / "run.yaml")
    steps = fork.plan(finished[0], before, fork.load(str(finished[0] / "run.yaml"), [word]))
    assert {step.reused for step in steps if step.name == "evaluation.json"} == {reused}


TRAINED = {"policy", "reward", "evaluation.json"}


@pytest.mark.parametrize(
    ("word", "first", "second"),
    [
        ("evaluate.max_tokens=3", {"evaluation.json"}, {"evaluation.json"}),
        ("data.licence=mit", {"datasets"}, {"datasets"}),
        ("preference.margin=2", {"datasets"}, {"datasets"}),
        ("data.labelled={x: 1}", {"datasets", "reward", "evaluation.json"}, None),
        ("data.validation_share=0.5", {"datasets", *TRAINED}, None),
        ("evaluate.exact_match=x", {"datasets", *TRAINED}, None),
        ("evaluate.win_rate=x", {"datasets", *TRAINED}, None),
        ("evaluate.weights={helpfulness: 1}", {"evaluation.json"}, {"evaluation.json"}),
        ("sft.steps=9", {"policy", "evaluation.json"}, None),
        ("models.base=x", TRAINED, None),
        ("select.unique=true", {"decisions", "datasets", *TRAINED}, None),
    ],
)
def test_a_model_depends_on_the_rows_that_it_reads_and_not_on_their_card(finished, tmp_path, word, first, second):
    """What is made again of two rounds that train; None is all but the prompts."""
    stages = ("prompts", "responses", "scored", "decisions")
    for number in range(2):
        for name in (*stages, "datasets", "policy", "reward"):
            (tmp_path / f"round-{number}" / name).mkdir(parents=True)
        for name in stages:
            (tmp_path / f"round-{number}" / name / "SUCCESS.json").write_text('{"totals": {}}')
        (tmp_path / f"round-{number}/evaluation.json").write_text("{}")
    steps = [step for step in forked(finished, tmp_path, [], [word]) if not step.reused]
    again = [{step.name for step in steps if step.folder == f"round-{number}"} for number in range(2)]
    assert again[0] == first
    assert again[1] == ({*stages[1:], "datasets", *TRAINED} if second is None else second)


def forked(finished, folder, words, more):
    """The steps of a fork of two rounds that train, as the folder has them."""
    trains = dict(sft=Training(), reward=RewardTraining())
    config = dataclasses.replace(
        fork.from_yaml(finished[0] / "run.yaml"), run=RunSettings(rounds=2), **trains
    )
    (folder / "before.yaml").write_text(to_yaml(config))
    before, after = (fork.load(str(folder / "before.yaml"), some) for some in (words, [*words, *more]))
    return list(fork.plan(folder, before, after))


TUNED = ("preference.enabled=true", "preference.iterations=2")
PLAIN, FIRST = ("policy", "reward"), ("sft", "preference-1", "policy", "reward")


@pytest.mark.parametrize(
    ("there", "words", "change", "taken", "second"),
    [
        (FIRST, TUNED, "preference.beta=0.5", {"sft": "sft", "reward": "reward"}, False),
        (FIRST, TUNED, "sft.steps=9", {"reward": "reward"}, False),
        (FIRST, TUNED, "reward.steps=9", {"sft": "sft", "preference-1": "preference-1", "policy": "policy"}, False),
        (FIRST, TUNED, "preference.margin=1", {"sft": "sft", "reward": "reward"}, False),
        (FIRST, TUNED, "preference.restart_every=5", {name: name for name in FIRST}, True),
        (FIRST, TUNED, "preference.iterations=1", {"sft": "sft", "policy": "preference-1", "reward": "reward"}, False),
        (FIRST, TUNED, "preference.enabled=false", {"policy": "sft", "reward": "reward"}, False),
        (PLAIN, (), "preference.enabled=true", {"sft": "policy", "reward": "reward"}, False),
        (PLAIN, (), "preference.beta=0.5", {"policy": "policy", "reward": "reward"}, True),
        (PLAIN, (), "sft.enabled=false", {"reward": "reward"}, False),
    ],
)
def test_a_step_towards_the_policy_is_taken_over_under_its_new_name(
    finished, tmp_path, there, words, change, taken, second
):
    """What of the models of the first round, by new name, and whether the second one's prompts have the same answers."""
    for number in range(2):
        for name in ("prompts", "responses", *there):
            (tmp_path / f"round-{number}" / name).mkdir(parents=True)
        for name in ("prompts", "responses"):
            (tmp_path / f"round-{number}" / name / "SUCCESS.json").write_text('{"totals": {}}')
    steps = [step for step in forked(finished, tmp_path, list(words), [change]) if step.reused]
    assert {step.name: step.source for step in steps if step.folder == "round-0" and step.name in FIRST} == taken
    assert any(step.folder == "round-1" and step.name == "responses" for step in steps) == second


def test_the_datasets_are_named_by_what_stands_in_them_and_in_their_card():
    config = fork.load("tiny")
    measured = {key for key, _ in leaves() if key.startswith("evaluate.")} - {f"evaluate.{name}" for name in FILES}
    apart = {"models.base", *measured, *(key for key, _ in leaves() if key.startswith(("sft.", "reward.")))}
    pairs = ("judge", "margin", "per_prompt", "selected")
    apart |= {key for key, _ in leaves() if key.startswith("preference.") and not key.endswith(pairs)}
    apart.remove("reward.outputs")  # which score stands where in a row
    for key, _ in leaves():
        if identity(changed(config, key)) != identity(config):
            differs = [dataset_settings(changed(config, key), n) != dataset_settings(config, n) for n in (0, 1)]
            later = key not in measured or key.startswith("evaluate.gate_")  # which says what a round has handed on
            assert differs == [key not in apart, later], key


def test_revisions_depend_on_the_limits_and_waves_do_not(finished):
    before = fork.from_yaml(finished[0] / "run.yaml")
    after = fork.load(str(finished[0] / "run.yaml"), ["select.minimum.helpfulness=0.2"])
    steps = {step.name: step.reused for step in fork.plan(finished[0], before, after)}
    assert steps["wave-1/scored"] and steps["scored"]
    assert not steps["revise-1/prompts"] and not steps["wave-1/revise-1/responses"]


def test_forks_that_make_no_sense(finished, tmp_path):
    with pytest.raises(UserError, match="the folder is no run"):
        fork.fork(tmp_path, tmp_path / "new", [])
    with pytest.raises(UserError, match="cannot be forked into itself"):
        fork.fork(finished[0], finished[0], [])
    fork.fork(finished[0], tmp_path / "new", ["select.target=3"])
    with pytest.raises(UserError, match="another config"):
        fork.fork(finished[0], tmp_path / "new", ["select.target=4"])
