"""Select: decisions for all rows, counted by reason, and no row lost."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import canned
import pytest
from rounds import context, scored, write_scored

from nemo_sdg.config import load_recipe
from nemo_sdg.errors import StoreError
from nemo_sdg.quality import decide
from nemo_sdg.records import Decision, Scored
from nemo_sdg.stages import select
from nemo_sdg.store import StageStore
from nemo_sdg.store.files import dump


def test_every_row_gets_a_decision_and_the_totals_say_why(tmp_path: Path):
    where = context(tmp_path, "select.minimum={helpfulness: 3}", "select.per_prompt=1", "generate.group_size=2")
    rows = [
        scored("a", 0, "5"),
        scored("a", 1, "6", helpfulness=3.0),
        scored("b", 0, "7", helpfulness=2.9),
        scored("c", 0, "8", coherence=math.nan),
        scored("d", 0, " "),
    ]
    write_scored(where, rows)
    totals = select.run(where)
    assert {key: totals[key] for key in ("rows_in", "kept", "dropped", "faulty")} == {
        "rows_in": 5,
        "kept": 1,
        "dropped": {
            "not among the best 1 of its prompt": 1,
            "helpfulness below 3": 1,
            "score not finite": 1,
            "empty response": 1,
        },
        "faulty": 0,
    }
    store = StageStore.finished(tmp_path / "run/round-0/decisions")
    decisions = [Decision.from_row(row) for row in store.read()]
    assert [d.id for d in decisions] == [r.id for r in rows] and [d.kept for d in decisions] == [True] + [False] * 4
    assert math.isnan(decisions[3].scalar)
    assert totals["length"]["chance"] == 0.2 and totals["variety"]["after"]["characters"]["most"] == 1
    assert select.run(where) == totals


def test_it_waits_for_a_finished_score_stage_and_keeps_to_its_settings(tmp_path: Path):
    with pytest.raises(StoreError, match="not finished"):
        select.run(context(tmp_path))
    write_scored(context(tmp_path), [scored("a")])
    select.run(context(tmp_path))
    with pytest.raises(StoreError, match="another fingerprint"):
        select.run(context(tmp_path, "select.minimum.helpfulness=1"))


def test_what_an_evaluation_file_holds_belongs_to_the_stage(tmp_path: Path):
    file = tmp_path / "held.jsonl"
    file.write_text('{"question": "a"}\n')
    where = context(tmp_path, f"select.decontaminate=[{file}]")
    write_scored(where, [scored("a"), scored("b")])
    assert select.run(where)["dropped"] == {"shares a text with an evaluation file": 1}
    file.write_text('{"question": "b"}\n')
    with pytest.raises(StoreError, match="another fingerprint"):
        select.run(where)


def test_rules_of_the_recipe_are_applied_and_belong_to_the_stage(tmp_path: Path):
    """The recipe in examples/, on rows of our own."""
    recipe = load_recipe("examples/01_own_rule.py")
    assert recipe.config.run.name == "own_rule" and len(recipe.rules) == 2
    where = replace(context(tmp_path), rules=recipe.rules)
    write_scored(where, [scored("a", 0, "5"), scored("b", 0, "b is b"), scored("c", 0, "x" * 41)])
    assert select.run(where)["dropped"] == {"repeats the question": 1, "more than 40 characters": 1}
    with pytest.raises(StoreError, match="another fingerprint"):
        select.run(replace(where, rules=recipe.rules[:1]))
    with pytest.raises(StoreError, match="another fingerprint"):
        select.run(replace(where, rules=recipe.rules[::-1]))


def test_the_lines_are_those_of_the_decisions_themselves(tmp_path: Path):
    """Of rows that were decided on before, are rewritten, leak, or say the same as another, as of all others."""
    held = tmp_path / "held.jsonl"
    held.write_text('{"text": "one two three four five six seven eight nine ten eleven twelve thirteen"}\n')
    words = [f"select.{name}={json.dumps(value)}" for name, value in canned.RULES.items()]
    where = context(tmp_path, *words, f"select.decontaminate=[{held}]", "generate.group_size=7")
    rows = [Scored.from_row(row) for row in canned.rows(120, 2500)]
    for number in range(0, 120, 9):
        extra = {"kept": True, "duplicate_of": "x", "redacted": {"EMAIL": 9}, "own": '"\u2028'}
        rows[number] = replace(rows[number], extra={**rows[number].extra, **extra})
    rows[1] = replace(rows[1], response="So: one two three four five six seven eight nine ten eleven twelve thirteen")
    rows[2] = replace(rows[2], scores={**rows[2].scores, "coherence": math.nan})
    write_scored(where, rows)
    select.run(where)
    made = b"".join(StageStore.finished(where.folder / "decisions").lines())
    decisions = decide(rows, where.config.select)
    told = {column for decision in decisions for column in decision.extra} - {"own", "topic", "kind"}
    assert told == {"redacted", "leaked_from", "duplicate_of", "scalar_length_free"}
    assert made == b"".join(dump(decision.to_row()) for decision in decisions)
