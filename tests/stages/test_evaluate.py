"""The evaluate stage: before is measured once, a model that was not trained keeps its figures, done means done; drift and
win rate are against the models that the run started from, judged by the first reward model in every round."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rounds import context

from nemo_sdg.config import ATTRIBUTES
from nemo_sdg.evaluation import held_out
from nemo_sdg.records import hash_of
from nemo_sdg.stages import evaluate
from nemo_sdg.store import commit_json, commit_rows, read_json

PROMPTS = ["what is a", "what is b", "what is c", "what is d"]
BEFORE = ["1", "a long answer", "3", "4"]


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Rows for every setting, as words."""
    checks = [{"line": "l", "reason": "r", "wanted": True, "spec": {"kind": "words", "relation": "at_most", "count": 1}}]
    rows = {
        "exact_match": [{"prompt": text, "answer": str(i + 1)} for i, text in enumerate(PROMPTS)],
        "helpsteer2": [{"prompt": f"rate {i}", "response": "y" * (i + 1), **dict.fromkeys(ATTRIBUTES, i)} for i in range(5)],
        "rewardbench": [
            {"prompt": "p", "chosen": "aa", "rejected": "b", "subset": "hep-go"},
            {"prompt": "p", "chosen": "a", "rejected": "bb", "subset": "hep-go"},
        ],
        "instructions": [{"prompt": "what is b", "checks": checks}],
        "win_rate": [{"prompt": text} for text in PROMPTS],
    }
    for name, some in rows.items():
        commit_rows(tmp_path / f"{name}.jsonl", some)
    return {name: f"evaluate.{name}={tmp_path}/{name}.jsonl" for name in rows}


def run(where, monkeypatch, says: dict[str, list[str]] | None = None, rates: dict[str, Callable] | None = None) -> list[tuple]:
    """Runs the stage with models of which only what they say is known; returns (kind, model, title, asked) in order.

    A policy answers BEFORE unless `says` has its folder; a reward model gives the number of characters unless `rates` has.
    """
    asked = []

    def name(role) -> str:
        return str(role.model).removeprefix(str(where.run.out))

    def answers(role, prompts, mesh, console, title):
        prompts = list(prompts)
        asked.append(("policy", name(role), title, len({hash_of(row.messages) for row in prompts})))
        said = dict(zip(PROMPTS, (says or {}).get(name(role), BEFORE)))
        found = {hash_of(row.messages): said[row.messages[-1]["content"]] for row in prompts}
        return {key: text for key, text in found.items() if text is not None}

    def scores(role, groups, mesh, console, title):
        asked.append(("reward", name(role), title, sum(map(len, groups))))
        rate = (rates or {}).get(name(role), lambda text: float(len(text)))
        return [[dict.fromkeys(ATTRIBUTES, rate(text)) for _, text in group] for group in groups]

    monkeypatch.setattr(held_out, "answers", answers)
    monkeypatch.setattr(held_out, "scores", scores)
    evaluate.run(where)
    return asked


def trained(where, *kinds: str) -> None:
    for kind in kinds:
        (where.folder / kind).mkdir(parents=True)


def told(where) -> dict:
    return read_json(where.folder / "evaluation.json")


def test_first_round_measures_what_was_given_and_what_was_trained(tmp_path, monkeypatch, files):
    trained(first := context(tmp_path, files["exact_match"], files["helpsteer2"]), "policy")
    assert run(first, monkeypatch) == [
        ("policy", "nowhere", "evaluate policy before training", 4),
        ("policy", "/round-0/policy", "evaluate policy", 4),
        ("reward", "nowhere", "evaluate reward before training", 5),
    ]
    found = told(first)
    assert found["policy"]["exact_match"] == 0.75 and found["policy"]["n"] == 4 and found["policy"]["faulty"] == 0
    assert found["policy"]["low"] < 0.75 < found["policy"]["high"]
    assert found["reward"] == found["before"]["reward"]  # it was not trained, so it is the same model
    assert found["reward"]["coherence"]["pearson"] == pytest.approx(1) and found["reward"]["coherence"]["mae"] == 1
    assert found["drift"]["coherence"] == {"shift": 0, "ks": 0, "outside": 0, "drifted": False}
    assert not {"instructions", "rewardbench", "win_rate", "sft"} & set(found) and "drift" not in found["before"]


def test_later_rounds_take_the_figures_of_before_and_done_means_done(tmp_path, monkeypatch, files):
    words = (files["exact_match"], files["helpsteer2"])
    trained(first := context(tmp_path, *words), "policy", "reward")
    run(first, monkeypatch)
    trained(second := context(tmp_path, *words, number=1), "policy")
    assert run(second, monkeypatch) == [
        ("policy", "/round-1/policy", "evaluate policy", 4),
        ("reward", "/round-0/reward", "evaluate reward", 5),  # the last one that was trained
    ]
    assert told(first)["before"] == told(second)["before"]
    assert "reference" in told(first) and "reference" not in told(second)
    assert run(second, monkeypatch) == []


def test_without_held_out_rows_nothing_is_measured(tmp_path, monkeypatch):
    trained(where := context(tmp_path), "policy", "reward")
    assert run(where, monkeypatch) == []
    nothing = {"policy": None, "reward": None}
    assert told(where) == {**nothing, "before": nothing, "models": {"policy": "nowhere", "reward": "nowhere"}}


def test_everything_in_two_rounds(tmp_path, monkeypatch, files):
    """Round 0: three answers as before, one shorter. Round 1: one longer, one not given. One judge, the first."""
    trained(first := context(tmp_path, *files.values()), "policy", "reward")
    says = {"/round-0/policy": ["1", "b", "3", "4"], "/round-1/policy": ["1", "a very long answer", "3", None]}
    rates = {"/round-0/reward": lambda text: 10.0 - len(text), "/round-1/reward": lambda text: 3.0 + len(text)}
    assert run(first, monkeypatch, says, rates) == [
        ("policy", "nowhere", "evaluate policy before training", 4),  # a prompt of three files is asked once
        ("policy", "/round-0/policy", "evaluate policy", 4),
        ("reward", "nowhere", "evaluate reward before training", 5 + 4 + 4 + 4),
        ("reward", "/round-0/reward", "evaluate reward", 5 + 4),
    ]
    found, before = told(first), told(first)["before"]
    assert (before["instructions"]["prompt_strict"], found["instructions"]["prompt_strict"]) == (0.0, 1.0)
    assert before["rewardbench"]["Reasoning"] == 0.5 and before["rewardbench"]["length_only"] == {"Reasoning": 0.5}
    assert (before["reward"]["helpfulness"]["pearson"], found["reward"]["helpfulness"]["pearson"]) == pytest.approx((1, -1))
    won = found["win_rate"]
    assert (won["wins"], won["ties"], won["losses"], won["n"]) == (0, 3, 1, 4)  # the judge likes length
    assert found["drift"]["helpfulness"]["drifted"] and found["drift"]["helpfulness"]["shift"] == pytest.approx(4 / 2**0.5)
    assert "win_rate" not in before and "drift" not in before

    trained(second := context(tmp_path, *files.values(), number=1), "policy", "reward")
    assert run(second, monkeypatch, says, rates) == [
        ("policy", "/round-1/policy", "evaluate policy", 4),
        ("reward", "nowhere", "judge the policy's answers", 3),
        ("reward", "/round-1/reward", "evaluate reward", 5 + 4),
    ]
    won = told(second)["win_rate"]
    assert (won["wins"], won["ties"], won["losses"], won["n"]) == (1, 2, 1, 4)  # no answer loses
    assert told(second)["drift"]["helpfulness"]["shift"] == pytest.approx(3 / 2**0.5)  # against the first, not the last
    assert told(second)["drift"]["helpfulness"]["outside"] == pytest.approx(3 / 5)
    assert told(second)["policy"]["exact_match"] == 0.5


def test_the_scalar_of_the_settings_says_who_wins(tmp_path, monkeypatch, files):
    says = {"/round-0/policy": ["1", "b", "3", "4"]}
    trained(where := context(tmp_path, files["win_rate"], "evaluate.weights={helpfulness: -1}"), "policy")
    run(where, monkeypatch, says)
    assert (told(where)["win_rate"]["wins"], told(where)["win_rate"]["losses"]) == (1, 0)


def test_a_policy_that_was_not_trained_is_even_with_itself(tmp_path, monkeypatch, files):
    trained(where := context(tmp_path, files["win_rate"]), "reward")
    assert run(where, monkeypatch) == [
        ("policy", "nowhere", "evaluate policy before training", 4),
        ("reward", "nowhere", "evaluate reward before training", 4),
    ]
    assert told(where)["win_rate"]["ties"] == 4 and told(where)["win_rate"]["win_rate"] == 0.5


def test_an_older_first_round_without_what_is_compared_with_is_read(tmp_path, monkeypatch, files):
    trained(first := context(tmp_path, *files.values()), "policy", "reward")
    run(first, monkeypatch)
    path = first.folder / "evaluation.json"
    old = {"policy": {"exact_match": 0.5, "n": 4, "faulty": 0}, "reward": None}
    path.unlink()
    commit_json(path, {**old, "before": old, "models": {}})
    trained(second := context(tmp_path, *files.values(), number=1), "policy", "reward")
    run(second, monkeypatch)
    found = told(second)
    assert found["before"] == old and found["rewardbench"]["Reasoning"] == 0.5
    assert "drift" not in found and "win_rate" not in found


def test_what_sft_alone_has_made_is_asked_for_the_right_answers_only(tmp_path, monkeypatch, files):
    words = ("preference.enabled=true", "preference.beta=0.3", files["win_rate"])
    words += (f"evaluate.exact_match={tmp_path}/three.jsonl",)
    commit_rows(tmp_path / "three.jsonl", [{"prompt": text, "answer": str(i + 1)} for i, text in enumerate(PROMPTS[:3])])
    trained(where := context(tmp_path, *words), "policy", "sft")
    asked = run(where, monkeypatch, {"/round-0/sft": ["1", "2", "3", "4"]})
    assert ("policy", "/round-0/sft", "evaluate sft", 3) in asked
    assert told(where)["sft"]["exact_match"] == 1.0 and told(where)["policy"]["exact_match"] == 2 / 3


def test_a_model_that_is_no_better_stays_behind_and_the_next_is_held_against_the_one_before(tmp_path, monkeypatch, files):
    words = (files["exact_match"], files["helpsteer2"], "evaluate.gate_policy=exact_match")
    says = {"/round-0/policy": ["1", "2", "no", "no"], "/round-1/policy": ["1", "2", "3", "4"], "/round-3/policy": ["1", "no", "no", "no"]}
    trained(first := context(tmp_path, *words), "policy", "reward")
    assert first.trained("policy", 0) is not None  # nobody has said anything yet
    run(first, monkeypatch, says)
    gate = told(first)["gate"]
    assert set(gate) == {"policy"}  # a reward model goes on unasked
    assert (gate["policy"]["accepted"], gate["policy"]["new"], gate["policy"]["old"]) == (False, 0.5, 0.75)

    trained(second := context(tmp_path, *words, number=1), "policy")
    assert second.model("policy") == "nowhere" and second.model("reward") == first.folder / "reward"
    run(second, monkeypatch, says)
    gate = told(second)["gate"]["policy"]
    assert (gate["accepted"], gate["new"], gate["old"]) == (True, 1.0, 0.75)  # not against the one that stayed behind

    third = context(tmp_path, *words, number=2)  # trains no policy, so there is nothing to decide
    assert third.model("policy") == second.folder / "policy"
    run(third, monkeypatch, says)
    assert "gate" not in told(third) and told(third)["policy"]["exact_match"] == 1.0

    trained(fourth := context(tmp_path, *words, number=3), "policy")
    run(fourth, monkeypatch, says)
    gate = told(fourth)["gate"]["policy"]
    assert (gate["accepted"], gate["new"], gate["old"]) == (False, 0.25, 1.0)
    assert context(tmp_path, *words, number=4).model("policy") == second.folder / "policy"
