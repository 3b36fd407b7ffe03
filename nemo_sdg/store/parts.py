"""The files that hold the rows of one group. Each proves itself: its name has its group, its length and its digest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from nemo_sdg.errors import StoreError
from nemo_sdg.store.files import dump

_NAME = re.compile(r"(?:part|faulty)-(\d{5,})-n(\d+)-([0-9a-f]{16})\.jsonl")
_REDO = "delete this file and run again: its group alone is made once more"


def named(kind: str, group: int, rows: Iterable[dict | bytes]) -> tuple[str, bytes]:
    """Name and content of a file; `kind` is part, or faulty for rows that were set aside. A row may be a line already."""
    lines = [row if isinstance(row, bytes) else dump(row) for row in rows]
    data = b"".join(lines)
    return f"{kind}-{group:05d}-n{len(lines)}-{hashlib.sha256(data).hexdigest()[:16]}.jsonl", data


def group_of(file: Path) -> int:
    """The group that a file belongs to. Raises StoreError when no file of ours is named so."""
    return int(_match(file)[1])


def read_part(file: Path) -> list[dict]:
    """The rows of a file that is what its name says. Raises StoreError for any other."""
    return [json.loads(line) for line in part_lines(file)]


def part_lines(file: Path) -> list[bytes]:
    """As `read_part`, the rows as they stand there, each with its line end."""
    return check_part(file).splitlines(keepends=True)


def check_part(file: Path) -> bytes:
    """The bytes of a file that is what its name says. Raises StoreError for any other."""
    _, count, expected = _match(file).groups()
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()[:16]
    if found != expected:
        raise StoreError(
            "the part was torn or altered", where=file, found=f"SHA-256 {found}", expected=expected, way_out=_REDO
        )
    rows = data.count(b"\n")
    if rows != int(count):
        raise StoreError("the part has another length", where=file, found=rows, expected=count, way_out=_REDO)
    return data


def two_parts(one: Path, other: Path) -> StoreError:
    return StoreError(
        "two different parts claim one group",
        where=one.parent,
        found=f"{one.name} and {other.name}",
        way_out="delete the one that you do not trust, or both to make the group again",
    )


def _match(file: Path) -> re.Match[str]:
    match = _NAME.fullmatch(file.name)
    if match is None:
        raise StoreError("not a part of this stage", where=file, way_out="move it out of the folder")
    return match
