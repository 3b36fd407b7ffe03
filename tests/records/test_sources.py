"""A path of rows is a file, a folder or a glob, of JSONL or parquet."""

from __future__ import annotations

import gzip
import json
import math
from datetime import date
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from nemo_sdg import file_verbs
from nemo_sdg.errors import UserError
from nemo_sdg.records import Prompt, each_row, read_rows, row_files
from nemo_sdg.store import rows_digest


def jsonl(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def parquet(path: Path, rows: list[dict]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    jsonl(tmp_path / "b.jsonl", {"id": "b", "prompt": "x"}, b"{\n", {"id": "a", "prompt": "again"})
    jsonl(tmp_path / "a.jsonl.gz", {"id": "a", "prompt": "x"})
    jsonl(tmp_path / ".hidden/c.jsonl", {"id": "h", "prompt": "x"})
    (tmp_path / "README.md").write_text("no rows")
    (tmp_path / "sub").mkdir()
    parquet(tmp_path / "sub/c.parquet", [{"id": "c", "prompt": "y", "messages": None}])
    return tmp_path


def test_a_folder_is_all_its_files_in_the_order_of_their_names(folder: Path):
    assert row_files(folder) == [folder / "a.jsonl.gz", folder / "b.jsonl", folder / "sub/c.parquet"]
    rows, faults = read_rows(folder, Prompt)
    assert [row.id for row in rows] == ["a", "b", "c"]
    assert [(fault.file, fault.line) for fault in faults] == [(str(folder / "b.jsonl"), n) for n in (2, 3)]
    assert f"the id 'a' stands in {folder}/a.jsonl.gz:1 already" in faults[1].reason
    assert [number for number, _ in each_row(folder, Prompt)] == [1, 2, 3, 4, 5]


def test_a_glob_is_the_files_that_it_names(folder: Path):
    assert row_files(folder / "*.jsonl*") == [folder / "a.jsonl.gz", folder / "b.jsonl"]
    assert row_files(folder / "**/*.parquet") == [folder / "sub/c.parquet"]
    odd = jsonl(folder / "[x].jsonl", {"id": "odd", "prompt": "x"})
    assert row_files(odd) == [odd]  # a file that is there is no glob
    for nothing in (folder / "*.csv", folder / "sub" / "*.jsonl"):
        with pytest.raises(UserError, match="no file of rows"):
            row_files(nothing)


def test_the_digest_of_several_files_is_that_of_their_contents(folder: Path):
    before = rows_digest(folder / "*.jsonl*")
    assert before != rows_digest(folder) and rows_digest(folder / "absent.jsonl") is None
    data = (folder / "b.jsonl").read_bytes()
    (folder / "b.jsonl").write_bytes(data.replace(b"x", b"y"))
    assert rows_digest(folder / "*.jsonl*") != before


def test_what_json_cannot_hold_in_a_table_is_set_aside(tmp_path: Path):
    asked = {"messages": [{"role": "user", "content": "x", "name": None}]}
    rows = [{**asked, "id": "a", "w": math.nan, "day": None}, {**asked, "id": "b", "day": date(2024, 1, 1)}, asked]
    file = parquet(tmp_path / "p.parquet", rows)
    read, faults = read_rows(file, Prompt)
    assert [row.id for row in read] == [Prompt.from_row(asked).id], "a null id is none"
    assert [fault.line for fault in faults] == [1, 2]
    assert "not JSON" in faults[0].reason and "date" in faults[1].reason


def test_what_is_no_table_is_one_sentence(tmp_path: Path):
    (tmp_path / "p.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match="cannot read the rows.*no parquet file"):
        read_rows(tmp_path / "p.parquet", Prompt)
    with pytest.raises(UserError, match="cannot read the rows"):
        read_rows(tmp_path / "absent.parquet", Prompt)


def test_a_row_that_only_the_model_refuses_is_named_by_its_own_file(folder: Path):
    (fault,) = file_verbs._faults(folder, Prompt, {"c": "too long"})
    assert (fault.file, fault.line, fault.reason) == (str(folder / "sub/c.parquet"), 1, "too long")
    (fault,) = file_verbs._faults(folder / "b.jsonl", Prompt, {"a": "too long"})
    assert (fault.file, fault.line) == (str(folder / "b.jsonl"), 3)
