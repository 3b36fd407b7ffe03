"""A folder of datasets appears whole, and its bytes depend on the rows alone."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from nemo_sdg.errors import StoreError
from nemo_sdg.store import DatasetFolder, digest
from nemo_sdg.store.datasets import ROWS_PER_GROUP, read_summary

SCHEMA = pyarrow.schema({"id": pyarrow.string(), "x": pyarrow.float64()})


def write(final: Path, rows: int = 3) -> Path:
    with DatasetFolder(final) as folder:
        folder.make("empty.jsonl")
        for number in range(rows):
            folder.add_line("a.jsonl", {"id": str(number)})
            folder.add_row("hf/t/train.parquet", {"id": str(number), "x": number / 3}, SCHEMA)
        folder.add_text("README.md", "é\n")
        folder.commit({"totals": {"rows": rows}})
    return final


def test_everything_is_there_and_summed_up(tmp_path: Path):
    final = write(tmp_path / "datasets")
    assert (final / "a.jsonl").read_bytes() == b'{"id":"0"}\n{"id":"1"}\n{"id":"2"}\n'
    assert (final / "empty.jsonl").read_bytes() == b"" and (final / "README.md").read_text() == "é\n"
    assert pyarrow.parquet.read_table(final / "hf/t/train.parquet").to_pylist()[1] == {"id": "1", "x": 1 / 3}
    names = ["README.md", "a.jsonl", "empty.jsonl", "hf/t/train.parquet"]
    summary = json.loads((final / "summary.json").read_bytes())
    assert summary == {"totals": {"rows": 3}, "digests": {name: digest(final / name) for name in names}}
    assert os.listdir(tmp_path) == ["datasets"]


def test_row_groups_are_of_one_size_and_the_bytes_are_always_the_same(tmp_path: Path):
    one, other = (write(tmp_path / name, ROWS_PER_GROUP + 2) for name in ("one", "other"))
    table = "hf/t/train.parquet"
    assert (one / table).read_bytes() == (other / table).read_bytes()
    metadata = pyarrow.parquet.read_metadata(one / table)
    groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert groups == [ROWS_PER_GROUP, 2]


def test_nothing_is_left_of_a_folder_that_was_given_up(tmp_path: Path):
    with pytest.raises(KeyError):
        with DatasetFolder(tmp_path / "datasets") as folder:
            folder.add_line("a.jsonl", {})
            raise KeyError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("add", [lambda f, row: f.add_line("a.jsonl", row), lambda f, row: f.add_row("a", row, SCHEMA)])
def test_nan_is_in_no_file(tmp_path: Path, add):
    with pytest.raises(ValueError, match="Out of range"), DatasetFolder(tmp_path / "datasets") as folder:
        add(folder, {"id": "a", "x": math.nan})
        folder.commit({})
    assert os.listdir(tmp_path) == []


def test_what_a_killed_start_has_left_is_not_taken_over(tmp_path: Path):
    (tmp_path / ".datasets.tmp").mkdir()
    (tmp_path / ".datasets.tmp/stale.jsonl").write_text("x")
    final = write(tmp_path / "datasets")
    assert not (final / "stale.jsonl").exists() and os.listdir(tmp_path) == ["datasets"]


def test_a_full_disk_is_one_sentence(tmp_path: Path):
    with pytest.raises(StoreError, match="cannot write.*No space left"):
        with DatasetFolder(tmp_path / "datasets") as folder:
            folder.add_line("a.jsonl", {})
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "text", ["[]", "{}", "null", "3", "{", '{"digests": [], "totals": {}}', '{"totals": {}}', "[" * 99999]
)  # fmt: skip
def test_a_summary_that_says_something_else_is_one_sentence(text, tmp_path: Path):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(StoreError, match="summary.json: the file was torn or altered"):
        read_summary(tmp_path, "totals", "digests")
    with pytest.raises(StoreError, match="none/summary.json"):
        read_summary(tmp_path / "none", "totals")


def test_a_folder_that_is_there_stays(tmp_path: Path):
    before = (write(tmp_path / "datasets") / "summary.json").read_bytes()
    with pytest.raises(StoreError, match="there already"):
        write(tmp_path / "datasets", 5)
    assert (tmp_path / "datasets/summary.json").read_bytes() == before
