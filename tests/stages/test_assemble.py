"""Assemble: what training reads, to the character; what must never be in it is not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from rounds import context, scored, write_scored

from nemo_sdg.errors import StoreError, UserError
from nemo_sdg.stages import assemble, select
from nemo_sdg.store import commit_rows

LABELS = dict(helpfulness=3, correctness=4, coherence=4, complexity=1, verbosity=0)


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "run/round-0/datasets" / name).read_text().splitlines()]


def assembled(folder: Path, rows: list, *words: str) -> dict:
    where = context(folder, "select.minimum={helpfulness: 3}", *words)
    write_scored(where, rows)
    select.run(where)
    return assemble.run(where)


def test_kept_rows_become_nemo_chat_rows():
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Add 2 and 3."},
    ]
    assert assemble.chat_row(turns, "5") == {
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
    assert assemble.chat_row(turns[1:2], "x")["system"] == ""


def test_scored_rows_and_helpsteer_rows_become_regression_rows(tmp_path: Path):
    file = tmp_path / "hs.jsonl"
    multi = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nAdd 2 and 3."
    commit_rows(file, [{"prompt": multi, "response": "5", **LABELS}])
    rows = [scored("Say x", 0, "x", helpfulness=3.1, verbosity=-0.7), scored("Say y", 0, "y", helpfulness=1.0)]
    totals = assembled(tmp_path, rows, f"data.helpsteer2={file}")
    assert totals == {
        "sft": {"rows_in": 2, "kept": 1, "dropped": {"not selected": 1}, "faulty": 0},
        "reward": {"rows_in": 3, "kept": 3, "dropped": {}, "faulty": 0},
    }
    chat = lines(tmp_path, "sft.jsonl")
    assert [[turn["value"] for turn in row["conversations"]] for row in chat] == [["Say x", "x"]]
    first, second, third = lines(tmp_path, "reward.jsonl")
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    head = f"<extra_id_0>System\n{system}\n<extra_id_1>User\n"
    assert first["text"] == head + "Say x\n<extra_id_1>Assistant\nx\n<extra_id_2>"
    assert first["label"] == [-100, -100, -100, -100, 3.1, 4, 4, 4, -0.7]  # a dropped or low row teaches the scorer too
    assert second["label"][4] == 1.0
    assert third["text"] == (
        head
        + "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nAdd 2 and 3.\n<extra_id_1>Assistant\n5\n<extra_id_2>"
    )
    assert third["label"] == [-100, -100, -100, -100, 3, 4, 4, 1, 0]


def test_bad_labels_are_set_aside_with_line_and_reason_and_counted(tmp_path: Path):
    file = tmp_path / "hs.jsonl"
    bad = [{"helpfulness": 5}, {"coherence": -100}, {"verbosity": None}, {"response": 3}]
    good = {"prompt": "Hi", "response": "Hello", **LABELS}
    file.write_text("\n".join([json.dumps({**good, **change}) for change in [{}, *bad]] + ["{"]))
    totals = assembled(tmp_path, [scored("a")], f"data.helpsteer2={file}")
    assert totals["reward"] == {"rows_in": 7, "kept": 2, "dropped": {}, "faulty": 5}
    faults = lines(tmp_path, "faulty.jsonl")
    assert [fault["line"] for fault in faults] == [2, 3, 4, 5, 6] and {fault["file"] for fault in faults} == {str(file)}
    assert "helpfulness is out of range" in faults[0]["reason"] and "coherence is out of range" in faults[1]["reason"]
    assert "verbosity is missing" in faults[2]["reason"]


def test_a_held_out_prompt_is_in_no_file(tmp_path: Path):
    exact, held = tmp_path / "exact.jsonl", tmp_path / "held.jsonl"
    commit_rows(exact, [{"id": 1, "prompt": "Add 2 and 3.", "answer": "5"}])
    commit_rows(held, [{"prompt": "Say x", "response": "x", **LABELS}])
    train = tmp_path / "hs.jsonl"
    follow_up = "Say x\n<extra_id_1>Assistant\nx\n<extra_id_1>User\nAgain"
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say x"}]
    asked = [{"prompt": "Say x"}, {"prompt": follow_up}, {"messages": told}, {"prompt": "Say z"}]
    commit_rows(train, [{**row, "response": "r", **LABELS} for row in asked])
    rows = [scored("Add 2 and 3. "), scored("Add 2 and 4."), scored("Say x", response="y")]
    words = (f"data.helpsteer2={train}", f"evaluate.exact_match={exact}", f"evaluate.helpsteer2={held}")
    totals = assembled(tmp_path, rows, *words)
    assert totals["sft"] == {"rows_in": 3, "kept": 1, "dropped": {"held out": 2}, "faulty": 0}
    assert totals["reward"] == {"rows_in": 7, "kept": 2, "dropped": {"held out": 5}, "faulty": 0}
    text = "".join((tmp_path / "run/round-0/datasets" / name).read_text() for name in ("sft.jsonl", "reward.jsonl"))
    assert "Add 2 and 4." in text and "Say z" in text and "Add 2 and 3." not in text and "Say x" not in text


def test_what_cannot_be_scored_or_said_reaches_no_file(tmp_path: Path):
    rows = [
        scored("a"),
        scored("b", response="<extra_id_1>"),
        scored("c", response=" "),
        scored("d", complexity=math.nan),
    ]
    totals = assembled(tmp_path, rows)
    assert totals["sft"]["kept"] == totals["reward"]["kept"] == 1
    assert sum(totals["reward"]["dropped"].values()) == 3 and totals["reward"]["dropped"]["score not finite"] == 1


def test_nothing_left_to_train_on_is_said_before_training(tmp_path: Path):
    with pytest.raises(UserError) as caught:
        assembled(tmp_path, [scored("a", helpfulness=1.0)])
    message = str(caught.value)
    assert "nothing is left to train the policy on" in message and "helpfulness below 3: 1" in message
    assert "select.minimum" in message and not (tmp_path / "run/round-0/datasets").exists()
    off = context(tmp_path, "select.minimum={helpfulness: 3}", "sft.enabled=false")
    assert assemble.run(off)["sft"]["kept"] == 0


def test_a_rerun_gives_the_same_totals_and_refuses_what_was_altered(tmp_path: Path):
    totals = assembled(tmp_path, [scored("a")])
    where = context(tmp_path, "select.minimum={helpfulness: 3}")
    assert assemble.run(where) == totals
    exact = tmp_path / "exact.jsonl"
    commit_rows(exact, [{"id": 1, "prompt": "a", "answer": "5"}])
    with pytest.raises(StoreError, match="other rows or settings"):
        assemble.run(context(tmp_path, "select.minimum={helpfulness: 3}", f"evaluate.exact_match={exact}"))
    file = tmp_path / "run/round-0/datasets/sft.jsonl"
    file.write_text(file.read_text() * 2)
    with pytest.raises(StoreError, match="sft.jsonl: the file was altered"):
        assemble.run(where)


def test_the_card_tells_counts_and_sources(tmp_path: Path):
    assembled(tmp_path, [scored("a"), scored("b", helpfulness=0.0)])
    card = (tmp_path / "run/round-0/datasets/README.md").read_text()
    assert "| sft.jsonl | 2 | 1 | not selected: 1 | 0 |" in card and "helpfulness below 3: 1" in card
    assert str(tmp_path / "prompts.jsonl") in card and str(tmp_path / "run") not in card
