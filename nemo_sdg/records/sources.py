"""What a path of rows means: one file, all files of a folder, those that a glob names, or any of these on the hub."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from nemo_sdg import resources
from nemo_sdg.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_ROWS_AT_ONCE = 1000
_SET_ASIDE = re.compile(r"faulty-\d{5,}-n\d+-[0-9a-f]{16}\.jsonl|.+\.faulty\.jsonl")
"""What a stage or a verb has set aside, with its reason, beside the rows that it could use (store/parts.py, store/results.py)."""


def row_files(path: str | Path) -> list[Path]:
    """The files of rows that a path means, in the order of their names; of a folder all below it but those set aside.

    Raises UserError when it is empty, or a folder or a glob has none; whether a single file is there is not asked.
    """
    if not str(path):
        raise UserError("no rows are given", found="an empty path", expected="a file, a folder, a glob or an hf:// address")
    place = resources.resolve(path)
    if place.is_dir():
        below = [(file.relative_to(place), file) for file in place.rglob("*") if file.name.endswith(SUFFIXES)]
        seen = [file for inside, file in below if not any(part.startswith(".") for part in inside.parts)]
        files = [file for file in seen if not _SET_ASIDE.fullmatch(file.name)]
    elif not place.exists() and glob.has_magic(str(place)):
        files = [Path(name) for name in glob.glob(str(place), recursive=True)]
    else:
        return [place]
    if not files:
        raise UserError("there is no file of rows", where=path, expected="files named " + ", ".join(SUFFIXES))
    return sorted(files)


def named_files(path: str | Path) -> list[tuple[str, Path]]:
    """The files of `row_files` with what errors call each: where the path is a file, as it was given."""
    files = row_files(path)
    return [(str(path), files[0])] if files == [resources.resolve(path)] else [(str(file), file) for file in files]


def parquet_rows(file: Path) -> Iterator[dict]:
    """The rows of a parquet file without the columns that are null, a few at a time. Raises OSError."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    yield {name: value for name, value in row.items() if value is not None}
    except pyarrow.ArrowException as error:
        raise OSError(f"no parquet file: {error}") from error
