"""Three arms of the same candidates: what each learns from, that all take as many steps, and that seeds are added."""

from __future__ import annotations

import dataclasses
import json

import pytest
from ranks import run_ranks
from rounds import context, scored, write_stage
from small_run import make_inputs, row_files, small_config, whole

from nemo_sdg.config import validate
from nemo_sdg.errors import CheckpointError, ConfigError
from nemo_sdg.quality.rules import LEAKED, PERSONAL
from nemo_sdg.records import Decision
from nemo_sdg.stages import ablate
from nemo_sdg.stages.ablate import _lines
from nemo_sdg.store import StageStore, commit_rows, read_json
from nemo_sdg.store.seals import CLEANED
from nemo_sdg.store.verifying import verify_run


def decided(number: int, kept: bool, prompt: str | None = None, reason: str = "low", said: str | None = None) -> dict:
    row = scored(prompt or f"question {number}", response=f"answer {number}" if said is None else said)
    return Decision(**vars(row), kept=kept, reason=None if kept else reason, scalar=1.0).to_row()


def answers(where, arm: str, seed: int = 0) -> list[str]:
    return [line["conversations"][-1]["value"] for line in _lines(where, arm, seed)]


def test_what_each_arm_learns_from(tmp_path):
    commit_rows(tmp_path / "dialogues.jsonl", [{"prompt": "hello", "response": "from a file"}])
    commit_rows(tmp_path / "held.jsonl", [{"prompt": "held out", "answer": "x"}])
    words = (f"data.sft={{{tmp_path}/dialogues.jsonl: 1}}", f"evaluate.exact_match={tmp_path}/held.jsonl")
    where = context(tmp_path, *words)
    rows = [decided(number, kept=number % 3 == 0) for number in range(30)] + [decided(30, False, "held out")]
    rows += [decided(31, False, reason=f"{LEAKED} held.jsonl"), decided(32, False, reason=f"{PERSONAL} email")]
    rows += [decided(33, False, said=" ")]  # these three teach nobody
    write_stage(where, "decisions", rows)
    selected, random, unfiltered = (answers(where, arm) for arm in ("selected", "random", "unfiltered"))
    assert selected == [f"answer {number}" for number in range(0, 30, 3)] + ["from a file"]
    assert unfiltered == [f"answer {number}" for number in range(30)] + ["from a file"]  # without what is held out
    assert len(random) == len(selected) and set(random) < set(unfiltered) and random[-1] == "from a file"
    assert random != selected and random == answers(where, "random") != answers(where, "random", seed=1)
    assert selected == answers(where, "selected", seed=1)


def test_an_ablation_of_a_run_on_two_replicas_and_more_seeds_later(tmp_path):
    import nemo.collections.llm  # noqa: F401  (once, before any rank is forked)

    config, out = small_config(make_inputs(tmp_path), rounds=1), tmp_path / "run"
    run_ranks(whole, config, out, dp=2)
    without = row_files(out)
    config.evaluate = dataclasses.replace(config.evaluate, ablation=True, ablation_seeds=1)
    run_ranks(whole, config, out, dp=2)
    assert row_files(out) == without
    first = read_json(out / "round-0" / "ablation.json")
    assert first["seeds"] == 1 and {arm: len(values) for arm, values in first["values"].items()} == dict.fromkeys(first["arms"], 1)
    assert first["rows"]["selected"] == first["rows"]["random"] < first["rows"]["unfiltered"]
    assert first["rows"]["unfiltered"] == StageStore.finished(out / "round-0" / "decisions").totals["rows_in"]
    assert first["differences"]["random"]["low"] is None
    assert not (out / "round-0" / ".ablation").exists(), "the policies are let go"
    events = [json.loads(line) for line in (out / "logs" / "events.jsonl").read_text().splitlines()]
    steps = {one["folder"]: one["steps"] for one in events if one["event"] == "trained" and "ablation" in one["folder"]}
    assert len(steps) == 3 and set(steps.values()) == {config.sft.steps}

    config.evaluate = dataclasses.replace(config.evaluate, ablation_seeds=2)
    run_ranks(whole, config, out, dp=2)
    second = read_json(out / "round-0" / "ablation.json")
    assert {arm: values[:1] for arm, values in second["values"].items()} == first["values"]
    events = [json.loads(line) for line in (out / "logs" / "events.jsonl").read_text().splitlines()]
    assert sum(one["event"] == "trained" and "ablation" in one["folder"] for one in events) == 6, "the first seed is kept"

    class Quiet:
        def say(self, text: str) -> None:
            pass

    assert verify_run(out, Quiet()) == []


def test_an_ablation_from_weights_that_are_gone_says_so(tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / CLEANED).write_text("{}")
    words = ("sft.start_from=latest", f"models.instruct={tmp_path}/policy", "evaluate.ablation=true",
             f"evaluate.exact_match={tmp_path}/held.jsonl")  # fmt: skip
    with pytest.raises(CheckpointError, match="all arms of the ablation start from were deleted"):
        ablate.run(context(tmp_path, *words))


@pytest.mark.parametrize(
    "change, where",
    [
        ({"ablation": True, "exact_match": None}, "evaluate.ablation: there are no rows"),
        ({"gate_policy": "exact_match", "exact_match": None}, "evaluate.gate_policy: there are no rows to decide by"),
        ({"gate_reward": "rewardbench", "rewardbench": None}, "evaluate.gate_reward: there are no rows to decide by"),
        ({"gate_reward": "rewardbensh"}, "evaluate.gate_reward: the value is not allowed"),
        ({"gate_margin": 1.0}, "evaluate.gate_margin: the value is not allowed"),
        ({"ablation_seeds": 0}, "evaluate.ablation_seeds: the value is not allowed"),
    ],
    ids=lambda case: str(case) if isinstance(case, dict) else "",
)
def test_what_cannot_be_measured_is_refused(tmp_path, change, where):
    config = small_config(tmp_path)
    config.evaluate = dataclasses.replace(config.evaluate, **change)
    with pytest.raises(ConfigError, match=where):
        validate(config)


def test_an_ablation_without_sft_is_refused(tmp_path):
    config = small_config(tmp_path)
    config.evaluate.ablation, config.sft.enabled = True, False
    with pytest.raises(ConfigError, match="trained by SFT"):
        validate(config)
