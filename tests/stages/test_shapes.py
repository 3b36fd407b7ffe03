"""Rows in the shapes of NeMo and TRL, to the character."""

from __future__ import annotations

import math

import pytest

from nemo_sdg.errors import RowError
from nemo_sdg.models import templates
from nemo_sdg.records import Pair
from nemo_sdg.stages import shapes

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Add 2 and 3."},
]
SCORES = dict(helpfulness=3.1, correctness=4.0, coherence=4.0, complexity=-100.0, verbosity=-0.7)


def test_a_dialogue_in_nemos_chat_format():
    assert shapes.chat_row("p#0", TURNS, "5") == {
        "id": "p#0",
        "system": "Be brief.",
        "mask": "User",
        "type": None,
        "conversations": [
            {"from": "User", "value": "Hi", "label": None},
            {"from": "Assistant", "value": "Hello", "label": None},
            {"from": "User", "value": "Add 2 and 3.", "label": None},
            {"from": "Assistant", "value": "5", "label": None},
        ],
    }
    assert shapes.chat_row("p#0", TURNS[1:2], "x")["system"] == ""


def test_what_nobody_scored_is_minus_100_for_nemo_and_null_in_the_table():
    assert shapes.regression_row("p#0", TURNS, "5", SCORES)["label"] == [-100] * 4 + [3.1, 4.0, 4.0, -100, -0.7]
    columns = shapes.regression_columns("p#0", TURNS, "5", SCORES)
    assert columns == {"id": "p#0", "messages": TURNS, "response": "5", **SCORES, "complexity": None}
    with pytest.raises(RowError, match="score not finite"):
        shapes.regression_row("p#0", TURNS, "5", {**SCORES, "coherence": math.nan})


def test_a_pair_for_nemo_aligner_and_for_trl():
    pair = Pair("a>b", tuple(TURNS), "5", "6", 2.5, 1.0, "reward", SCORES)
    prompt = (
        "<extra_id_0>System\nBe brief.\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\nHello\n"
        "<extra_id_1>User\nAdd 2 and 3.\n<extra_id_1>Assistant\n"
    )
    assert shapes.preference_row(pair) == {
        "id": "a>b",
        "prompt": prompt,
        "chosen_response": "5\n<extra_id_1>",
        "rejected_response": "6\n<extra_id_1>",
        "chosen_reward": 2.5,
        "rejected_reward": 1.0,
    }
    assert shapes.preference_columns(pair) == {
        "id": "a>b",
        "prompt": TURNS,
        "chosen": [{"role": "assistant", "content": "5"}],
        "rejected": [{"role": "assistant", "content": "6"}],
        "score_chosen": 2.5,
        "score_rejected": 1.0,
        "margin": 1.5,
        "judge": "reward",
        "scores_chosen": {**SCORES, "complexity": None},
        "scores_rejected": None,
    }
    # What SFT trains on the same words: both data sets teach one format.
    assert prompt + "5\n<extra_id_1>" == templates.sft_text([*TURNS, {"role": "assistant", "content": "5"}])[0]


def test_a_schema_has_every_column_and_no_other():
    pair = Pair("a>b", tuple(TURNS), "5", "6", 2.5, 1.0, "reward", SCORES, SCORES)
    said = ("p#0", TURNS, "5", SCORES)
    for kind, row in (
        ("sft", shapes.chat_columns(*said)),
        ("reward", shapes.regression_columns(*said)),
        ("preference", shapes.preference_columns(pair)),
    ):
        assert shapes.schema(kind).names == list(row)


def test_a_changed_prompt_format_has_another_digest(monkeypatch):
    before = shapes.template_digests()
    assert set(before) == {"instruct", "reward"} and len(set(before.values())) == 2
    monkeypatch.setattr(templates, "REWARD_SYSTEM_PROMPT", "A chat.")
    assert shapes.template_digests()["instruct"] == before["instruct"]
    assert shapes.template_digests()["reward"] != before["reward"]
