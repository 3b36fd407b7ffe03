"""A run that has only Base: what it trains first, and that it is then a run like any other."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from ranks import run_ranks
from small_run import make_inputs, small_config, whole

from nemo_sdg import fork, plan
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import RunConfig, to_yaml, validate
from nemo_sdg.config.starting import begins_with
from nemo_sdg.console import Console
from nemo_sdg.errors import ConfigError, UserError
from nemo_sdg.store import Run
from nemo_sdg.store.verifying import verify_run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    import nemo.collections.llm  # noqa: F401  (once, before any rank is forked)

    root = make_inputs(tmp_path_factory.mktemp("inputs"))
    turns = [{"role": "user", "content": "a1"}, {"role": "assistant", "content": "ok"}]
    last = {"role": "assistant", "content": "a"}
    rows = [{"messages": [*turns, {"role": "user", "content": f"b{i}"}, last]} for i in range(9)]
    rows += [{"messages": turns[:1]}, {"prompt": "z1", "response": "held out"}]  # no answer; asked in the evaluation
    said = [{"from": "User", "value": "c"}, {"from": "Assistant", "value": "d"}]
    rows += [{"system": "", "mask": "User", "type": None, "conversations": said}]
    (root / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def config_of(root: Path, **run: object) -> RunConfig:
    config = small_config(root, rounds=1, **run)
    models = dataclasses.replace(config.models, instruct=None, reward=None)
    data = dataclasses.replace(config.data, sft={f"{root}/dialogues.jsonl": 2.0})
    return dataclasses.replace(config, models=models, data=data)


def killed(mesh, config, out, stop_after: int):
    """A run that is killed after so many optimizer steps of the first fit."""
    if mesh.writer:
        from nemo_sdg.training.strategy import FitStrategy

        step = FitStrategy.training_step

        def dies(self, *args, **kwargs):
            if self.trainer.global_step == stop_after:
                os._exit(0)
            return step(self, *args, **kwargs)

        FitStrategy.training_step = dies
    whole(mesh, config, out)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    run_ranks(whole, config_of(inputs), out)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """What of a run's rows and models must not depend on how it went."""
    names = ("*.jsonl", "SUCCESS.json", "evaluation.json", "training.json", "*.distcp")
    files = [file for name in names for file in folder.rglob(name) if "logs" not in file.parts]
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(files)}


def test_both_models_are_trained_first_and_the_first_round_uses_them(finished, inputs):
    started = finished / "start"
    assert {entry.name for entry in started.iterdir()} == {"datasets", "policy", "reward"}
    policy, reward = ModelFolder.open(started / "policy"), ModelFolder.open(started / "reward")
    assert (policy.is_reward, reward.is_reward) == (False, True)
    rows = [json.loads(line) for line in (started / "datasets" / "sft.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 10 and rows[0]["id"] == "sft/0:1" and rows[1]["id"] == "sft/0:1~2"
    totals = json.loads((started / "datasets" / "summary.json").read_text())["totals"]
    assert totals["sft"]["rows_in"] == 12 and totals["sft"]["dropped"] == {"held out": 1}
    assert sum(totals["sft"]["faulty"].values()) == 1 and totals["reward"]["rows"]["train"] == 12
    folder = finished / "round-0"
    for stage, kind, model in (("responses", "policy", policy), ("scored", "reward", reward)):
        row = json.loads(next((folder / stage).glob("part-*")).read_text().splitlines()[0])
        assert row["provenance"][kind] == model.digest, stage
    told = json.loads((folder / "evaluation.json").read_text())
    assert told["models"] == {"policy": "start/policy", "reward": "start/reward"}
    assert told["before"]["policy"]["n"] == 6
    # The dialogues join the round's own rows.
    assert "sft/0:1~2" in (folder / "datasets" / "sft.jsonl").read_text()


def test_it_does_what_the_two_fits_alone_do(finished, inputs, tmp_path):
    def by_hand(mesh):
        from nemo_sdg.training.fit import fit

        config, found = config_of(inputs), {}
        for kind, settings, rows in (("sft", config.sft, "sft"), ("reward", config.reward, "reward")):
            found[kind] = fit(
                kind, settings, models=config.models, start=inputs / "base", out=tmp_path / kind, mesh=mesh, seed=1234,
                rows=finished / "start" / "datasets" / f"{rows}.jsonl",
            )["losses"]  # fmt: skip
        return found

    expected = run_ranks(by_hand)[0]
    for kind, folder in (("sft", "policy"), ("reward", "reward")):
        assert json.loads((finished / "start" / folder / "training.json").read_text())["losses"] == expected[kind]


def test_a_run_that_is_killed_while_it_begins_goes_on_to_the_same_bytes(finished, inputs, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(AssertionError, match="ended without a result"):
        run_ranks(killed, config_of(inputs), out, 2)
    assert not (out / "start" / "policy").exists() and not (out / "round-0").exists()
    run_ranks(whole, config_of(inputs), out)
    assert contents(out) == contents(finished)


def test_on_four_ranks_it_learns_the_same(finished, inputs, tmp_path):
    run_ranks(whole, config_of(inputs), tmp_path / "run", tp=2, pp=2, timeout_s=120)
    for kind in ("policy", "reward"):
        runs = (tmp_path / "run", finished)
        here, there = (json.loads((run / "start" / kind / "training.json").read_text()) for run in runs)
        assert here["losses"] == pytest.approx(there["losses"], rel=1e-4)


def test_verify_looks_at_what_it_began_with(finished, tmp_path):
    text = io.StringIO()
    assert verify_run(finished, Console(text)) == []
    assert "not looked at" not in text.getvalue()
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    weights = max((copy / "start" / "reward").rglob("*.distcp"), key=lambda file: file.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert any("start/reward" in problem for problem in verify_run(copy, Console(io.StringIO())))
    shutil.rmtree(copy / "start" / "reward")
    assert any("start/reward is not there" in problem for problem in verify_run(copy, Console(io.StringIO())))


FORKS = {
    "select.minimum.helpfulness=-1": ["datasets", "policy", "reward"],
    "sft.learning_rate=2e-3": ["datasets", "reward"],
    "reward.learning_rate=2e-3": ["datasets", "policy"],
    "data.validation_share=0.5": [],
}


@pytest.mark.parametrize("word", FORKS)
def test_a_fork_takes_over_what_the_change_leaves(finished, tmp_path, word):
    from nemo_sdg.config import from_yaml, load

    before, after = from_yaml(finished / "run.yaml"), load(str(finished / "run.yaml"), [word])
    steps = list(fork.plan(finished, before, after))
    assert [step.name for step in steps if step.folder == "start" and step.reused] == FORKS[word]
    responses = next(step for step in steps if step.name == "responses")
    assert responses.reused == (FORKS[word] == ["datasets", "policy", "reward"])
    assert fork.fork(finished, tmp_path / "new", [word]) == 0
    there = sorted(entry.name for entry in (tmp_path / "new" / "start").glob("*"))
    assert there == sorted(FORKS[word])


def test_the_plan_says_what_is_trained_first(inputs, tmp_path):
    (tmp_path / "r.yaml").write_text(to_yaml(config_of(inputs)))
    config = dataclasses.replace(config_of(inputs), sft=dataclasses.replace(config_of(inputs).sft, enabled=False))
    text = io.StringIO()
    made = plan.make(config)
    made.show(Console(text))
    assert [model.role for model in made.models] == ["generate", "score", "train sft", "train rm"]
    assert {model.where for model in made.models} == {f"{inputs}/base"}
    assert "models.instruct is not set: a policy of" in text.getvalue()


def refused(config: RunConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(config)
    return str(caught.value)


def test_without_anything_to_learn_from_it_is_refused(inputs):
    config = config_of(inputs)
    assert begins_with(config) == ["policy", "reward"]
    no_dialogues = dataclasses.replace(config, data=dataclasses.replace(config.data, sft={}))
    assert "data.sft" in refused(no_dialogues) and "models.instruct" in refused(no_dialogues)
    nobody = dataclasses.replace(config, data=dataclasses.replace(config.data, helpsteer2=None))
    assert "data.helpsteer2" in refused(nobody) and "models.reward" in refused(nobody)
    pairs = dataclasses.replace(config, reward=dataclasses.replace(config.reward, objective="bradley_terry"))
    assert "data.preference" in refused(pairs)
    foreign = dataclasses.replace(
        config, score=dataclasses.replace(config.score, backend="hf"),
        reward=dataclasses.replace(config.reward, start_from="base"),
    )  # fmt: skip
    assert "a sequence-classification model" in refused(foreign)


def test_files_without_a_usable_row_are_refused_before_anything_is_trained(inputs, tmp_path):
    (tmp_path / "none.jsonl").write_text('{"messages": []}\n')
    config = config_of(inputs)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sft={f"{tmp_path}/none.jsonl": 1.0}))

    def run(mesh):
        with pytest.raises(UserError) as caught:
            whole(mesh, config, tmp_path / "run")
        return str(caught.value)

    message = run_ranks(run)[0]
    assert "nothing is left to train the first policy on" in message and "1 rows in, 0 kept" in message
    assert not (tmp_path / "run" / "start" / "policy").exists()
