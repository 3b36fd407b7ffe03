"""The files that a round hands on, written row by row, in a folder that appears when all of it is there."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from nemo_sdg.errors import StoreError
from nemo_sdg.store.files import commit_file, commit_folder, digest, dump, make_folder, open_new, refusing
from nemo_sdg.store.seals import sums, write_sums

if TYPE_CHECKING:
    import pyarrow

SUMMARY = "summary.json"
_TOLD = {"fingerprint": str, "templates": dict, "totals": dict, "digests": dict}
"""What stands in it."""
ROWS_PER_GROUP = 1000
"""Rows of a parquet row group: a number of our own, so that a file's bytes depend on its rows alone."""


def read_summary(folder: Path, *keys: str) -> list[Any]:
    """What the summary of a folder says under these keys. Raises StoreError when it is not there, or says it otherwise
    than `commit`."""
    file = folder / SUMMARY
    try:
        told = json.loads(file.read_bytes())
        found = [told[key] for key in keys]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        found = None
    if found is None or not all(isinstance(value, _TOLD[key]) for key, value in zip(keys, found)):
        raise StoreError(
            "the file was torn or altered, or the folder is not ours", where=file,
            way_out="move the folder away and run again",
        )  # fmt: skip
    return found


def read_finished(folder: Path, made_of: str) -> dict[str, Any]:
    """The totals of an earlier start, when its files are still what they were.

    Args:
        made_of: the fingerprint of rows and settings that a new start would write there.
    Raises:
        StoreError: the folder was made of others, or a file was altered.
    """
    made, digests, totals = read_summary(folder, "fingerprint", "digests", "totals")
    if made != made_of:
        raise StoreError(
            "the files were assembled from other rows or settings", where=folder, found=made, expected=made_of,
            way_out="write to another --out, or delete this folder to assemble again",
        )  # fmt: skip
    for file, expected in digests.items():
        found = digest(folder / file)
        if found != expected:
            way_out = "delete the folder and run again to assemble it once more"
            raise StoreError("the file was altered", where=folder / file, found=found, expected=expected, way_out=way_out)
    return totals


class DatasetFolder:
    """A folder in the making, beside its final place. Use it as a `with` block, and `commit` at its end.

    Raises StoreError when the disk refuses.
    """

    def __init__(self, final: Path) -> None:
        self.final, self._making = final, final.with_name(f".{final.name}.tmp")
        self._lines: dict[str, BinaryIO] = {}
        self._tables: dict[str, _Table] = {}
        shutil.rmtree(self._making, ignore_errors=True)  # of an earlier start that was killed

    def __enter__(self) -> DatasetFolder:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        for file in (*self._lines.values(), *self._tables.values()):
            with contextlib.suppress(OSError):  # what could not be written is told by `error`
                file.close()
        if error is not None:
            shutil.rmtree(self._making, ignore_errors=True)
        if isinstance(error, OSError):
            with refusing(self.final):
                raise error

    def add_line(self, name: str, row: Mapping[str, Any]) -> None:
        """Appends a row to a JSONL file."""
        self._file(name).write(dump(row))

    def make(self, *names: str) -> None:
        """Makes JSONL files that are there also without a row."""
        for name in names:
            self._file(name)

    def add_row(self, name: str, row: Mapping[str, Any], schema: pyarrow.Schema) -> None:
        """Appends a row to a parquet file; `schema` is that of the file's first row."""
        if name not in self._tables:
            self._tables[name] = _Table(self._open(name), schema)
        self._tables[name].add(row)

    def add_text(self, name: str, text: str) -> None:
        commit_file(self._making / name, text.encode())

    def commit(self, summary: Mapping[str, Any]) -> None:
        """Closes the files and gives the folder its name; summary.json also says each file's digest."""
        for file in self._lines.values():
            file.close()
        for table in self._tables.values():
            table.close()
        found = sums(self._making)
        told = {**summary, "digests": {name: found[name][:16] for name in found}}
        commit_file(self._making / SUMMARY, json.dumps(told, indent=1).encode())
        write_sums(self._making, found)
        commit_folder(self._making, self.final)

    def _file(self, name: str) -> BinaryIO:
        if name not in self._lines:
            self._lines[name] = self._open(name)
        return self._lines[name]

    def _open(self, name: str) -> BinaryIO:
        path = self._making / name
        make_folder(path.parent)
        return open_new(path)


class _Table:
    """A parquet file to which rows are appended."""

    def __init__(self, file: BinaryIO, schema: pyarrow.Schema) -> None:
        import pyarrow.parquet

        self._file, self._schema, self._waiting = file, schema, []
        self._writer = pyarrow.parquet.ParquetWriter(file, schema)

    def add(self, row: Mapping[str, Any]) -> None:
        self._waiting.append(row)
        if len(self._waiting) == ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        if self._waiting:
            self._flush()
        self._writer.close()
        self._file.close()

    def _flush(self) -> None:
        import pyarrow

        rows, self._waiting = self._waiting, []
        table = pyarrow.Table.from_pylist(rows, self._schema)
        for column in table.itercolumns():
            _refuse_not_finite(column.combine_chunks())  # parquet would hold NaN, which no line can
        self._writer.write_table(table, ROWS_PER_GROUP)


def _refuse_not_finite(column: pyarrow.Array) -> None:
    import pyarrow
    import pyarrow.compute

    if pyarrow.types.is_floating(column.type):
        if pyarrow.compute.all(pyarrow.compute.is_finite(column)).as_py() is False:
            raise ValueError("Out of range float values are not JSON compliant")
    elif pyarrow.types.is_nested(column.type):
        for below in column.flatten() if pyarrow.types.is_struct(column.type) else [column.flatten()]:
            _refuse_not_finite(below)
