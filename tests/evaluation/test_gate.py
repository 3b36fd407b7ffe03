"""May a new model go on: known answers of each measure, and the rule at its edges."""

from __future__ import annotations

import pytest

from nemo_sdg.config import Evaluate
from nemo_sdg.evaluation.gate import measured, verdict
from nemo_sdg.store import commit_json
from nemo_sdg.store.fits import goes_on

POLICY = {"policy": {"exact_match": 0.5, "n": 4}, "instructions": {"prompt_strict": 0.25}, "win_rate": {"win_rate": 0.7}}
REWARD = {
    "reward": {"helpfulness": {"spearman": 0.8, "n": 9}, "verbosity": {"spearman": 0.4, "n": 9}, "own": {"spearman": None, "n": 0}},
    "rewardbench": {"Chat": 0.9, "Safety": 0.6, "subsets": {}, "length_only": {"Chat": 0.1}, "faulty": 0},
}


@pytest.mark.parametrize(
    "setting, measure, state, expected",
    [
        ("gate_policy", "exact_match", POLICY, 0.5),
        ("gate_policy", "instructions", POLICY, 0.25),
        ("gate_policy", "win_rate", POLICY, 0.7),
        ("gate_policy", "win_rate", {"policy": None}, 0.5),  # the start, which is held against itself
        ("gate_policy", "exact_match", {"policy": None}, None),
        ("gate_reward", "agreement", REWARD, 0.6),  # of the attributes that have a label
        ("gate_reward", "agreement", {"reward": {"helpfulness": {"spearman": None, "n": 3}}}, None),
        ("gate_reward", "rewardbench", REWARD, 0.75),  # of the sections that there are
        ("gate_reward", "rewardbench", {"rewardbench": {**REWARD["rewardbench"], "Overall": 0.65}}, 0.65),
        ("gate_reward", "rewardbench", {}, None),
    ],
)
def test_each_measure_is_read_where_it_stands(setting, measure, state, expected):
    found = measured(Evaluate(**{setting: measure}), setting.removeprefix("gate_"), state, state)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_an_attribute_counts_where_the_old_model_has_a_correlation():
    settings = Evaluate(gate_reward="agreement")

    def state(**spearman: float | None) -> dict:
        return {"reward": {name: {"spearman": value, "n": 9} for name, value in spearman.items()}}

    told = verdict(settings, "reward", state(a=0.6, b=None), state(a=0.5, b=None))  # b: all labels are the same
    assert told["accepted"] and (told["new"], told["old"]) == (0.6, 0.5)
    told = verdict(settings, "reward", state(a=0.6, b=None), state(a=0.5, b=0.1))  # a new one that says always the same
    assert not told["accepted"] and told["new"] is None


@pytest.mark.parametrize(
    "new, old, margin, goes_on",
    [
        (0.51, 0.50, 0.0, True),
        (0.50, 0.50, 0.0, False),  # as good is not better
        (0.75, 0.50, 0.25, False),
        (0.80, 0.50, 0.25, True),
        (0.49, 0.50, 0.0, False),
        (None, 0.50, 0.0, False),
        (0.5, None, 0.0, False),
    ],
)
def test_a_model_goes_on_only_when_it_is_better_by_more_than_the_margin(new, old, margin, goes_on):
    settings = Evaluate(gate_policy="exact_match", gate_margin=margin)
    states = [{"policy": None if value is None else {"exact_match": value}} for value in (new, old)]
    told = verdict(settings, "policy", *states)
    assert told["accepted"] is goes_on
    assert (told["new"], told["old"], told["margin"], told["measure"]) == (new, old, margin, "exact_match")
    assert ("it goes on" in told["why"]) is goes_on


def test_nobody_has_said_no_where_nothing_is_told(tmp_path):
    assert not goes_on(tmp_path, "policy")  # there is none
    for kind in ("policy", "reward"):
        (tmp_path / kind).mkdir()
        assert goes_on(tmp_path, kind)
    commit_json(tmp_path / "evaluation.json", {"gate": {"policy": {"accepted": False}, "reward": {"accepted": True}}})
    assert not goes_on(tmp_path, "policy") and goes_on(tmp_path, "reward")
