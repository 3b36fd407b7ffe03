"""The evaluate stage: before is measured once, a model that was not trained keeps its figures, done means done."""

from __future__ import annotations

import json

from rounds import context

from nemo_sdg.evaluation import held_out
from nemo_sdg.stages import evaluate


def run(where, monkeypatch) -> list[tuple[str, str, str]]:
    """Runs the stage with measures that only note what is measured; returns (kind, model, title) in order."""
    asked = []

    def measure(kind: str):
        def noted(role, rows, mesh, console, title):
            assert role.kind == kind
            asked.append((kind, str(role.model).removeprefix(str(where.run.out)), title))
            return {"n": len(asked)}

        return noted

    for kind in ("policy", "reward"):
        monkeypatch.setattr(held_out, kind, measure(kind))
    evaluate.run(where)
    return asked


SET = ("evaluate.exact_match=held.jsonl", "evaluate.helpsteer2=rated.jsonl")


def trained(where, *kinds: str) -> None:
    for kind in kinds:
        (where.folder / kind).mkdir(parents=True)


def test_first_round_measures_what_was_given_and_what_was_trained(tmp_path, monkeypatch):
    first = context(tmp_path, *SET)
    trained(first, "policy")
    assert run(first, monkeypatch) == [
        ("policy", "nowhere", "evaluate policy before training"),
        ("reward", "nowhere", "evaluate reward before training"),
        ("policy", "/round-0/policy", "evaluate policy"),
    ]
    told = json.loads((first.folder / "evaluation.json").read_text())
    assert told["policy"] == {"n": 3}
    assert told["reward"] == told["before"]["reward"] == {"n": 2}  # it was not trained, so it is the same model


def test_later_rounds_take_the_figures_of_before_and_done_means_done(tmp_path, monkeypatch):
    trained(first := context(tmp_path, *SET), "policy", "reward")
    run(first, monkeypatch)
    trained(second := context(tmp_path, *SET, number=1), "policy")
    assert run(second, monkeypatch) == [
        ("policy", "/round-1/policy", "evaluate policy"),
        ("reward", "/round-0/reward", "evaluate reward"),  # the last one that was trained
    ]
    before = [json.loads((where.folder / "evaluation.json").read_text())["before"] for where in (first, second)]
    assert before[0] == before[1]
    assert run(second, monkeypatch) == []


def test_without_held_out_rows_nothing_is_measured(tmp_path, monkeypatch):
    trained(where := context(tmp_path), "policy", "reward")
    assert run(where, monkeypatch) == []
    told = json.loads((where.folder / "evaluation.json").read_text())
    assert told["policy"] is None and told["reward"] is None
