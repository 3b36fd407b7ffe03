"""Rows of users: every defect in every place is set aside with its reason, and the rows beside it stay as they are."""

from __future__ import annotations

import json
from pathlib import Path

import bad_lines
import model_free
import pytest
from defects import DEFECTS, LABEL_DEFECTS, good_lines, line

from nemo_sdg.records import Labelled, read_rows


def test_there_are_forty_kinds_and_more():
    assert len(DEFECTS) >= 70 and len(LABEL_DEFECTS) >= 10


@pytest.mark.parametrize("place", ["first", "in the middle", "last"])
def test_every_defect_in_every_place(tmp_path, place):
    wrong = [problem for name in DEFECTS for problem in bad_lines.with_one(tmp_path, name, place)]
    assert not wrong, "\n".join(wrong)


def test_defects_of_rated_rows(tmp_path):
    good = line(prompt="x", response="y", helpfulness=4, correctness=0, coherence=4, complexity=1, verbosity=0)
    file = tmp_path / "rated.jsonl"
    for name, (bad, reason) in LABEL_DEFECTS.items():
        file.write_bytes(b"\n".join([good, bad, good]) + b"\n")
        rows, faults = read_rows(file, Labelled)
        assert len(rows) == 2 and [fault.line for fault in faults] == [2], name
        assert reason in faults[0].reason and len(faults[0].reason) <= 400, (name, faults)


def test_five_thousand_mutated_lines(tmp_path):
    counts = bad_lines.fuzz(tmp_path, count=5_000, seed=12, alone=False)
    assert counts["lines"] == counts["kept"] + counts["faulty"] and counts["kept"] > 300 and counts["faulty"] > 2_000


def test_a_stage_counts_them_all(tmp_path):
    """Prompts and rated rows with every defect at once, through the stages into the files."""
    model_free.inputs(tmp_path, count=4)
    bad = [data for name, (data, _) in DEFECTS.items() if name not in ("an id again", "5 MB")]
    with open(tmp_path / "prompts.jsonl", "ab") as file:
        file.write(b"\n".join(bad) + b"\n")
    with open(tmp_path / "rated.jsonl", "ab") as file:
        file.write(b"\n".join(data for data, _ in LABEL_DEFECTS.values()) + b"\n")
    model_free.run(model_free.settings(tmp_path), tmp_path / "run")
    folder = tmp_path / "run" / "round-0"
    totals = json.loads((folder / "prompts/SUCCESS.json").read_bytes())["totals"]
    assert totals == {"rows_in": 5 + len(bad), "kept": 4, "dropped": {}, "faulty": 1 + len(bad)}
    totals = json.loads((folder / "datasets/summary.json").read_bytes())["totals"]["reward"]
    faulty = sum(totals["faulty"].values())
    assert faulty == 1 + len(LABEL_DEFECTS) and totals["rows_in"] == 7 + 3 + faulty
    assert bad_lines.not_finite(tmp_path / "run") == []


def test_good_rows_are_the_bytes_they_were_before(tmp_path):
    whole = bad_lines.written(bad_lines.read(tmp_path, good_lines(50))[0])
    lines = [data for pair in zip(good_lines(50), list(DEFECTS.values())) for data in (pair[0], pair[1][0])]
    assert bad_lines.written(bad_lines.read(tmp_path, lines)[0]) == whole and whole.count(b"\n") == 50


def test_no_line_of_a_broken_length_keeps_the_next_from_being_read(tmp_path: Path):
    """Around the longest line that is read, with and without its end, nothing of the next line is lost."""
    most = 2 << 20
    for size in (most - 1, most, most + 1, 2 * most, 2 * most + 1):
        padded = b'{"prompt": "' + b"x" * (size - 14) + b'"}'
        assert len(padded) == size
        rows, faults = bad_lines.read(tmp_path, [padded, *good_lines(2)])
        assert [row.id for row in rows[-2:]] == ["good 0", "good 1"] and len(rows) + len(faults) == 3
        assert [fault.line for fault in faults] == ([1] if size >= most else []), size
