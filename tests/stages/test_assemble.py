"""Assemble: what training reads, to the character; what must never be in it is not."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
from rounds import context, scored, write_scored

from nemo_sdg.errors import StoreError, UserError
from nemo_sdg.stages import assemble, select
from nemo_sdg.store import commit_rows

LABELS = dict(helpfulness=3, correctness=4, coherence=4, complexity=1, verbosity=0)


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "run/round-0/datasets" / name).read_text().splitlines()]


def counts(rows_in: int, kept: int, dropped: dict | None = None, faulty: dict | None = None) -> dict:
    """Totals of a kind whose rows are all for training."""
    rows = {"train": kept, "validation": 0}
    return {"rows_in": rows_in, "kept": kept, "dropped": dropped or {}, "faulty": faulty or {}, "rows": rows}


def every_text(folder: Path) -> str:
    """What is written in all files of the round's datasets, the tables as JSON."""
    files = [file for file in (folder / "run/round-0/datasets").rglob("*") if file.is_file()]
    tables = [json.dumps(pyarrow.parquet.read_table(f).to_pylist()) for f in files if f.suffix == ".parquet"]
    return "".join([*tables, *(f.read_text() for f in files if f.suffix != ".parquet")])


def assembled(folder: Path, rows: list, *words: str) -> dict:
    where = context(folder, "select.minimum={helpfulness: 3}", *words)
    write_scored(where, rows)
    select.run(where)
    return assemble.run(where)


def test_scored_rows_and_helpsteer_rows_become_regression_rows(tmp_path: Path):
    file = tmp_path / "hs.jsonl"
    multi = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nAdd 2 and 3."
    several = {"helpfulness": [3, 4, 3], "correctness": [4, 4]}  # as in HelpSteer2's disagreements: 10/3 in a float32
    commit_rows(file, [{"prompt": multi, "response": "5", **LABELS, **several}])
    rows = [scored("Say x", 0, "x", helpfulness=3.1, verbosity=-0.7), scored("Say y", 0, "y", helpfulness=1.0)]
    totals = assembled(tmp_path, rows, f"data.helpsteer2={file}")
    assert totals == {
        "sft": counts(2, 1, {"not selected": 1}),
        "preference": counts(2, 0, {"fewer than two usable responses": 2}),
        "reward": counts(3, 3),
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
    assert third["label"] == [-100, -100, -100, -100, 3.3333333, 4, 4, 1, 0]


def test_bad_labels_are_set_aside_with_line_and_reason_and_counted(tmp_path: Path):
    file = tmp_path / "hs.jsonl"
    bad = [{"helpfulness": 5}, {"coherence": -100}, {"verbosity": None}, {"response": 3}]
    good = {"prompt": "Hi", "response": "Hello", **LABELS}
    file.write_text("\n".join([json.dumps({**good, **change}) for change in [{}, *bad]] + ["{"]))
    totals = assembled(tmp_path, [scored("a")], f"data.helpsteer2={file}")
    reasons = {"the label helpfulness is out of range": 1, "the label coherence is out of range": 1}
    reasons |= {"the label verbosity is missing": 1, "response has no text": 1, "broken JSON": 1}
    assert totals["reward"] == counts(7, 2, faulty=reasons)
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
    pairs = tmp_path / "pairs.jsonl"
    commit_rows(pairs, [{"prompt": "Say x", "chosen": "a", "rejected": "b"}])
    rows = [scored("Add 2 and 3. "), scored("Add 2 and 4."), scored("Say x", response="y")]
    words = (f"data.helpsteer2={train}", f"data.preference={{{pairs}: 1}}")
    words += (f"evaluate.exact_match={exact}", f"evaluate.helpsteer2={held}")
    totals = assembled(tmp_path, rows, *words)
    assert totals["sft"] == counts(3, 1, {"held out": 2})
    assert totals["reward"] == counts(7, 2, {"held out": 5})
    assert totals["preference"]["dropped"]["held out"] == 3
    text = every_text(tmp_path)
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


def test_no_pair_to_tune_on_is_said_before_training(tmp_path: Path):
    with pytest.raises(UserError) as caught:
        assembled(tmp_path, [scored("a", 0, "x"), scored("a", 1, "y"), scored("b")], "preference.enabled=true")
    message = str(caught.value)
    assert "nothing is left to train the policy on, found 2 prompts in, 0 with a pair (" in message
    assert "fewer than two usable responses: 1" in message and "lower preference.margin" in message


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
    for word in (f"evaluate.exact_match={exact}", "data.licence=mit"):
        with pytest.raises(StoreError, match="other rows or settings"):
            assemble.run(context(tmp_path, "select.minimum={helpfulness: 3}", word))
    file = tmp_path / "run/round-0/datasets/sft.jsonl"
    file.write_text(file.read_text() * 2)
    told = where.folder / "datasets/summary.json"
    whole = told.read_bytes()
    for text in (b"[]", b"{}"):
        told.write_bytes(text)
        with pytest.raises(StoreError, match="summary.json: the file was torn or altered"):
            assemble.run(where)
    told.write_bytes(whole)
    with pytest.raises(StoreError, match="sft.jsonl: the file was altered"):
        assemble.run(where)


def test_files_of_labels_that_have_changed_are_told(tmp_path: Path):
    file = tmp_path / "hs.jsonl"
    commit_rows(file, [{"prompt": "x", "response": "y", **LABELS}])
    assembled(tmp_path, [scored("a")], f"data.helpsteer2={file}")
    commit_rows(file, [{"prompt": "x", "response": "z", **LABELS}])
    with pytest.raises(StoreError, match="other rows or settings"):
        assemble.run(context(tmp_path, "select.minimum={helpfulness: 3}", f"data.helpsteer2={file}"))


def test_pairs_become_preference_rows(tmp_path: Path):
    file = tmp_path / "pairs.jsonl"
    published = {"prompt": "Hi", "response_1": "Hello", "response_2": "No"}
    splits = [("train", -2), ("train", 0), ("val", 3), ("train", 9)]
    commit_rows(file, [{**published, "split": split, "preference_strength": strength} for split, strength in splits])
    rows = [scored("Say x", 0, "x"), scored("Say x", 1, "y", helpfulness=1.0), scored("Say z", 0, "z")]
    totals = assembled(tmp_path, rows, f"data.preference={{{file}: 1}}")
    dropped = {"fewer than two usable responses": 1, "tie": 1, "not of its file's train split": 1}
    assert totals["preference"] == counts(6, 2, dropped, {"the preference_strength is out of range": 1})
    own, published = lines(tmp_path, "preference.jsonl")
    assert own == {
        "id": "Say x#0>Say x#1",
        "prompt": "<extra_id_0>System\n\n<extra_id_1>User\nSay x\n<extra_id_1>Assistant\n",
        "chosen_response": "x\n<extra_id_1>",
        "rejected_response": "y\n<extra_id_1>",
        "chosen_reward": pytest.approx(4 * 1.64),
        "rejected_reward": pytest.approx(4 * 1.64 - 3 * 0.3),
    }
    assert (published["id"], published["chosen_response"]) == ("preference/0:1", "Hello\n<extra_id_1>")
    assert (published["chosen_reward"], published["rejected_reward"]) == (2.0, 0.0)


def test_an_answer_and_its_revision_make_a_pair_although_they_lie_apart(tmp_path: Path):
    """Revisions are committed after all answers of their wave, so rows of other prompts stand between the two."""
    first = [scored("Say x", 0, "poor", helpfulness=1.0), scored("Say y", 0, "y"), scored("Say y", 1, "z", correctness=1.0)]
    made = {"root": "Say x#0", "revises": "Say x#0", "revision": 1}
    again = replace(scored("Say x", 0, "better"), id="Say x#0/r1#0", provenance=made)
    totals = assembled(tmp_path, [*first, again])
    assert totals["preference"] == counts(2, 2)
    pairs = [(row["id"], row["chosen_response"]) for row in lines(tmp_path, "preference.jsonl")]
    assert pairs == [("Say y#0>Say y#1", "y\n<extra_id_1>"), ("Say x#0/r1#0>Say x#0", "better\n<extra_id_1>")]
    assert [row["id"] for row in lines(tmp_path, "reward.jsonl")] == [row.id for row in [*first, again]]


def test_files_are_blended_by_weight(tmp_path: Path):
    files = {name: tmp_path / f"{name}.jsonl" for name in ("once", "twice", "half")}
    for name, file in files.items():
        both = [{"prompt": f"{name} {i}", "response": f"r{j}", **LABELS} for i in range(60) for j in range(2)]
        commit_rows(file, both)
    weights = f"data.labelled={{{files['twice']}: 2, {files['half']}: 0.5}}"
    totals = assembled(tmp_path, [scored("a")], f"data.helpsteer2={files['once']}", weights)
    rows = lines(tmp_path, "reward.jsonl")
    by_file = {name: [row["text"] for row in rows if f"User\n{name} " in row["text"]] for name in files}
    assert len(by_file["once"]) == 120 and len(by_file["twice"]) == 240
    half = by_file["half"]
    assert 30 <= len(half) <= 90 and len(half) == len(set(half))
    assert len({text.split("\n")[3] for text in half}) == len(half) / 2  # both responses of a prompt, or none
    assert totals["reward"]["dropped"] == {"left out by its weight": 120 - len(half)}
    assert totals["reward"]["rows"]["train"] == len(rows) == 1 + 120 + 240 + len(half)
    names = [row["id"] for row in rows]
    assert len(set(names)) == len(names)
    assert names[:2] == ["a#0", "helpsteer2:1"] and names[121:123] == ["labelled/0:1", "labelled/0:1~2"]


def test_splits_share_no_prompt_and_nothing_is_lost(tmp_path: Path):
    file = tmp_path / "hs.jsonl"
    follow_up = "{0}\n<extra_id_1>Assistant\nx\n<extra_id_1>User\nAgain"
    commit_rows(file, [{"prompt": follow_up.format(f"Say {i}"), "response": "r", **LABELS} for i in range(80)])
    rows = [scored(f"Say {i}", sample, f"{sample}", correctness=4.0 - sample) for i in range(80) for sample in range(2)]
    words = ("data.validation_share=0.25", f"data.labelled={{{file}: 2}}")
    totals = assembled(tmp_path, rows, *words)
    seen: dict[str, set[str]] = {"train": set(), "validation": set()}
    for kind, field in (("sft", "conversations"), ("reward", "text"), ("preference", "prompt")):
        for split, name in (("train", f"{kind}.jsonl"), ("validation", f"validation/{kind}.jsonl")):
            found = lines(tmp_path, name)
            assert len(found) == totals[kind]["rows"][split]
            seen[split] |= {re.search(r"Say \d+", json.dumps(row[field]))[0] for row in found}
    assert not seen["train"] & seen["validation"] and len(seen["train"] | seen["validation"]) == 80
    assert 8 <= len(seen["validation"]) <= 32
    apart = len(seen["validation"])
    assert totals["sft"]["rows"] == {"train": 160 - 2 * apart, "validation": 2 * apart}
    # A labelled row is repeated where it trains, and stands once where it measures.
    assert totals["reward"]["rows"] == {"train": 160 - 2 * apart + 2 * (80 - apart), "validation": 3 * apart}


def test_a_weight_and_a_split_do_not_pick_the_same_prompts(tmp_path: Path):
    file = tmp_path / "hs.jsonl"
    commit_rows(file, [{"prompt": f"Say {i}", "response": "r", **LABELS} for i in range(80)])
    rows = [scored("a", sample) for sample in range(9)]
    words = ("data.validation_share=0.5", "sft.enabled=false", f"data.labelled={{{file}: 0.5}}")
    totals = assembled(tmp_path, rows, *words)
    files = ("reward.jsonl", "validation/reward.jsonl")
    split = [sum("Say" in row["text"] for row in lines(tmp_path, file)) for file in files]
    assert min(split) >= 8 and sum(split) == 80 - totals["reward"]["dropped"]["left out by its weight"]


def test_a_bad_file_of_labels_is_told_before_anything_is_written(tmp_path: Path):
    with pytest.raises(UserError, match="cannot read the rows"):
        assembled(tmp_path, [scored("a")], f"data.labelled={{{tmp_path}/absent.jsonl: 1}}")
    assert not [path for path in (tmp_path / "run/round-0").iterdir() if "datasets" in path.name]


def test_the_bytes_depend_on_rows_and_settings_alone(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        rows = [scored("a"), scored("b", helpfulness=0.0), scored("a", 1, "6", helpfulness=3.0)]
        prompts = tmp_path / "prompts.jsonl"
        commit_rows(prompts, [{"prompt": "a"}])
        rank_words = ("topology.dp=2", "run.threads=3") if name == "two" else ()
        assembled(tmp_path / name, rows, f"data.prompts={prompts}", *rank_words)
    one, two = (tmp_path / name / "run/round-0/datasets" for name in ("one", "two"))
    names = sorted(str(file.relative_to(one)) for file in one.rglob("*") if file.is_file())
    assert names == sorted(str(file.relative_to(two)) for file in two.rglob("*") if file.is_file())
    assert "hf/sft/train.parquet" in names
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_what_was_dropped_for_what_stands_in_it_teaches_nobody(tmp_path: Path):
    """A poor answer shows the reward model what is poor; personal data and texts of an evaluation show it nothing."""
    leak = tmp_path / "eval.jsonl"
    commit_rows(leak, [{"prompt": "one two three four five six", "answer": "seven"}])
    rows = [
        scored("Say x", 0, "good", helpfulness=4.0), scored("Say x", 1, "poor", helpfulness=1.0),
        scored("Say x", 2, "write to ann@example.org", helpfulness=2.0),
        scored("Say x", 3, "one two three four five six", helpfulness=3.5),
    ]  # fmt: skip
    words = ("select.pii=drop", f"select.decontaminate=[{leak}]", "select.ngram=5", "select.minimum={}")
    totals = assembled(tmp_path, rows, *words)
    assert totals["reward"]["kept"] == 2 and sum(totals["reward"]["dropped"].values()) == 2
    assert "ann@example.org" not in every_text(tmp_path) and "two three four" not in every_text(tmp_path)
