"""Files of held-out rows: what is wrong in them is found before a model is loaded, and told in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from nemo_sdg.config import ATTRIBUTES, Evaluate, RunConfig
from nemo_sdg.errors import RowError, UserError
from nemo_sdg.evaluation import files
from nemo_sdg.evaluation.files import HeldOut

ASKED = {"prompt": "x", "answer": "1"}
LABELS = {"prompt": "x", "response": "y", **dict.fromkeys(ATTRIBUTES, 2)}
PAIR = {"prompt": "x", "chosen": "a", "rejected": "b", "subset": "hep-go"}
CHECKED = {"prompt": "x", "checks": [{"line": "l", "reason": "r", "wanted": True, "spec": {"kind": "lower"}}]}
GOOD = {"exact_match": ASKED, "helpsteer2": LABELS, "rewardbench": PAIR, "instructions": CHECKED, "win_rate": {"prompt": "x"}}


def write(folder: Path, name: str, *rows: object) -> str:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def read(strict: bool = False, **paths: str) -> HeldOut:
    config = RunConfig(evaluate=Evaluate(**paths))
    config.run.strict = strict
    return files.read(config)


def test_all_five_kinds(tmp_path):
    found = read(**{name: write(tmp_path, name, row, {**row, "id": "second"}) for name, row in GOOD.items()})
    assert {name: len(getattr(found, name)) for name in GOOD} == dict.fromkeys(GOOD, 2)
    assert found.faulty == dict.fromkeys(GOOD, 0) and len(found.prompts) == 6
    assert [check.spec["kind"] for _, checks in found.instructions for check in checks] == ["lower", "lower"]
    assert found.notes == [] and read() == HeldOut()


def test_rewardbench_as_the_hub_stores_it(tmp_path):
    """Two splits in parquet, rows by number (the dataset card of allenai/reward-bench), and the command of the guides."""
    more = {"chosen_model": "m", "rejected_model": "n", "id": 7}
    tables = {"raw-00000-of-00001": [{**PAIR, **more}] * 3, "filtered-00000-of-00001": [{**PAIR, **more}] * 2}
    for name, rows in tables.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    found = read(strict=True, rewardbench=f"{tmp_path}/filtered-*.parquet")
    assert [(row.chosen, row.rejected, row.subset) for row in found.rewardbench] == [("a", "b", "hep-go")] * 2


BAD = {
    "no answer": ("exact_match", {"prompt": "z"}, 'no "answer" that is text'),
    "an answer that is a number": ("exact_match", {"prompt": "z", "answer": 5}, 'no "answer" that is text'),
    "no attribute": ("helpsteer2", {k: v for k, v in LABELS.items() if k != "coherence"}, "the label coherence is missing"),
    "a label out of range": ("helpsteer2", {**LABELS, "helpfulness": 5}, "helpfulness is out of range, found 5.0, expected 0 to 4"),
    "no chosen": ("rewardbench", {**PAIR, "chosen": None}, "the column chosen is missing"),
    "no checks": ("instructions", {"prompt": "z"}, "no instruction that a program can check"),
    "no such check": ("instructions", {"prompt": "z", "checks": [{**CHECKED["checks"][0], "spec": {"kind": "wrds"}}]},
                      "unknown kind of instruction, found 'wrds'; the nearest is words"),
    "no prompt": ("win_rate", {"text": "z"}, "no single prompt"),
    "broken JSON": ("win_rate", '{"prompt": ', "broken JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_counted_and_told_and_a_file_of_them_is_refused(tmp_path, case):
    name, bad, told = BAD[case]
    found = read(**{name: write(tmp_path, name, GOOD[name], bad)})
    assert len(getattr(found, name)) == 1 and found.faulty == {name: 1}
    place = f"{tmp_path}/{name}.jsonl"
    assert found.notes[0].startswith(f"1 of 2 rows of {place} cannot be used; the first is {place}:2: ")
    assert told in found.notes[0]
    with pytest.raises(RowError, match=f"{name}.jsonl:2: .*do without strict") as caught:
        read(strict=True, **{name: write(tmp_path, name, GOOD[name], bad)})
    assert told in str(caught.value)
    with pytest.raises(UserError, match="no held-out row can be used") as caught:
        read(**{name: write(tmp_path, name, bad)})
    assert told in str(caught.value) and str(caught.value).endswith(f"leave evaluate.{name} out")


def test_a_file_without_rows_and_one_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="found an empty file"):
        read(exact_match=write(tmp_path, "empty"))
    with pytest.raises(UserError, match="cannot read the rows"):
        read(exact_match=str(tmp_path / "none.jsonl"))


def test_an_unknown_subset_is_refused_with_its_line_and_the_nearest_one(tmp_path):
    path = write(tmp_path, "bench", PAIR, {**PAIR, "subset": "hep-ruby"})
    with pytest.raises(RowError, match=r"bench.jsonl:2: RewardBench has no such subset, found 'hep-ruby', expected 'hep-rust'"):
        read(rewardbench=path)


def test_what_is_held_out_of_training_is_all_that_the_files_ask(tmp_path):
    rows = {name: {**row, "prompt": f"asked by {name}"} for name, row in GOOD.items()}
    config = RunConfig(evaluate=Evaluate(**{name: write(tmp_path, name, row) for name, row in rows.items()}))
    asked = [messages[-1]["content"] for messages in files.conversations(config)]
    assert sorted(asked) == sorted(f"asked by {name}" for name in GOOD)
