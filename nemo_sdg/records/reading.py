"""The one reader of rows that come from outside. A faulty line is set aside with its reason; the others go on."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from nemo_sdg import resources
from nemo_sdg.errors import RowError, UserError
from nemo_sdg.records.pairs import Pair
from nemo_sdg.records.rows import Decision, Labelled, Prompt, Response, Scored
from nemo_sdg.records.sources import SUFFIXES, named_files, parquet_rows

_LONGEST = 2 << 20
"""Bytes of a line at most: whatever stands in it, to read it takes less than a second, and memory stays bounded."""
_DEEPEST = 64
"""Brackets within brackets at most: Python itself gives up at a depth that depends on who calls."""
_MOST_BRACKETS = 200_000
"""Of a line: a million small lists cost far more than the bytes that they stand in."""
_TOLD = 400
"""Characters of a reason at most."""


@dataclass(frozen=True)
class Fault:
    """A row that was set aside."""

    file: str
    line: int
    reason: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"

    def to_row(self) -> dict:
        return {"file": self.file, "line": self.line, "reason": self.reason}


Kind = TypeVar("Kind", Prompt, Response, Scored, Decision, Labelled, Pair)


def read_rows(path: str | Path, kind: type[Kind]) -> tuple[list[Kind], list[Fault]]:
    """All rows of a path, and those that were set aside with their file, line and reason; see `each_row`."""
    rows, faults = [], []
    for _, row in each_row(path, kind):
        (faults if isinstance(row, Fault) else rows).append(row)
    return rows, faults


def why_none(faults: list[Fault]) -> str:
    """What an error says was found where no row of a path can be used."""
    return f"{faults[0].place}: {faults[0].reason}" if faults else "an empty file"


def each_row(path: str | Path, kind: type[Kind]) -> Iterator[tuple[int, Kind | Fault]]:
    """(number from 1, row or Fault) for each row of a file, a folder, a glob or an address on the hub.

    Raises UserError when a file itself cannot be read.
    """
    files = named_files(path)
    first_place: dict[int, int] = {}  # of an id's hash, as one number: a file may have more rows than memory holds texts
    number = 0
    for which, (name, file) in enumerate(files):
        for line, parsed in read_objects(file, name):
            number += 1
            where = f"{name}:{line}"
            try:
                if isinstance(parsed, Fault):
                    raise RowError(parsed.reason)
                row = kind.from_row(parsed, where)
                place = line * len(files) + which
                if kind.unique and (first := first_place.setdefault(hash(row.id), place)) != place:
                    line_there, which_there = divmod(first, len(files))
                    there = f"line {line_there}" if len(files) == 1 else f"{files[which_there][0]}:{line_there}"
                    raise RowError(f"the id {row.id!r} stands in {there} already", where=where)
            except RowError as error:
                yield number, Fault(name, line, str(error).removeprefix(f"{where}: ")[:_TOLD])
            else:
                yield number, row


def read_objects(path: str | Path, name: str | None = None) -> Iterator[tuple[int, dict | Fault]]:
    """(line from 1, JSON object or Fault) for each line that is not blank; of a parquet file, for each row.

    Lines end at the byte \\n only: U+2028 and its like belong to the text.

    Args:
        name: what the file is called in faults; by default its path.
    """
    file, name = resources.resolve(path), str(path) if name is None else name
    try:
        if file.suffix == ".parquet":
            for number, row in enumerate(parquet_rows(file), start=1):
                yield number, _writable(row, name, number)
            return
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as lines:
            for number, line in enumerate(_lines(lines), start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, _parse(line, name, number)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            "cannot read the rows", where=name, found=reason, expected="a file named " + ", ".join(SUFFIXES)
        ) from None


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines; of one that is too long no more than tells that it is."""
    while line := file.readline(_LONGEST + 1):
        rest = line
        while len(line) > _LONGEST and rest and not rest.endswith(b"\n"):
            rest = file.readline(_LONGEST)
        yield line


def _parse(line: bytes, file: str, number: int) -> dict | Fault:
    try:
        if len(line) > _LONGEST:
            raise ValueError(f"the line has more than {_LONGEST:,} bytes")
        brackets = line.count(b"[") + line.count(b"{")
        if brackets > _MOST_BRACKETS:
            raise ValueError(f"the line has more than {_MOST_BRACKETS:,} brackets")
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_once)
        if not isinstance(row, dict):
            raise ValueError(f"not a JSON object but {type(row).__name__}")
        if brackets > _DEEPEST and _deeper(row, _DEEPEST):
            raise RecursionError
        _try_to_write(row)
    except RecursionError:
        return Fault(file, number, "brackets nested too deeply")
    except UnicodeError:
        return Fault(file, number, "not UTF-8 text")
    except json.JSONDecodeError as error:
        return Fault(file, number, f"broken JSON: {error.msg} at character {error.colno}")
    except ValueError as error:
        return Fault(file, number, str(error))
    return row


def _writable(row: dict, file: str, number: int) -> dict | Fault:
    """A row of a table, if JSON can hold what stands in it."""
    try:
        _try_to_write(row)
    except (TypeError, ValueError) as error:
        return Fault(file, number, str(error))
    return row


def _try_to_write(row: dict) -> None:
    """What no file of ours can hold, a lone surrogate or NaN in any column, is found here and not at the write."""
    json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {name!r} stands twice")
    return row


def _deeper(value: Any, most: int) -> bool:
    """Whether there are more than `most` lists and mappings within each other."""
    level = [value]
    for _ in range(most):
        nested = (item.values() if isinstance(item, dict) else item for item in level)
        level = [inner for items in nested for inner in items if isinstance(inner, (dict, list))]
        if not level:
            return False
    return True
