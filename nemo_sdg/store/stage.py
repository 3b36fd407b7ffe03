"""The rows of one stage: fixed row groups, one committed file per group, SUCCESS.json last.

A part's name says which group it is, how many rows it has and what their SHA-256 is, so a listing is the
whole truth and there is no ledger that could be torn. Groups follow from the row order alone, never from the
number of ranks: any rank may commit any group.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Iterator, Mapping

from nemo_sdg.config.values import fingerprint as fingerprint_of
from nemo_sdg.errors import StoreError
from nemo_sdg.store.files import commit_file, dump

_PART = re.compile(r"part-(\d{5,})-n(\d+)-([0-9a-f]{16})\.jsonl")
_REDO = "delete this file and run again: its group alone is made once more"


@dataclass(frozen=True)
class Group:
    """Rows [start, stop) of a stage's input, which become one file."""

    index: int
    start: int
    stop: int


class StageStore:
    """A stage's folder. `fingerprint` names its settings and inputs, `rows` is the length of its input.

    Raises StoreError when the folder belongs to another fingerprint, or a part in it is not what its name says.
    """

    def __init__(self, dir: Path, fingerprint: str, rows: int, group_size: int) -> None:
        self.dir, self.fingerprint, self.rows, self.group_size = Path(dir), fingerprint, rows, group_size
        self._identity = {"fingerprint": fingerprint, "rows": rows, "group_size": group_size}
        self._check_owner("stage.json")
        self._check_owner("SUCCESS.json")

    @classmethod
    def finished(cls, dir: Path) -> StageStore:
        """The store of a finished stage, for its readers. Raises StoreError when it is not finished."""
        success = _read(Path(dir) / "SUCCESS.json")
        if success is None:
            raise StoreError("the stage is not finished", where=dir, expected="SUCCESS.json", way_out="run it first")
        return cls(dir, success["fingerprint"], success["rows"], success["group_size"])

    @cached_property
    def groups(self) -> list[Group]:
        starts = range(0, self.rows, self.group_size)
        return [Group(i, start, min(start + self.group_size, self.rows)) for i, start in enumerate(starts)]

    def missing(self) -> list[Group]:
        """The groups that have no part yet; the parts that are there have been read and found whole."""
        parts = self._parts()
        for file in parts.values():
            _rows(file)
        return [group for group in self.groups if group.index not in parts]

    def present(self) -> set[int]:
        """Indices of the groups that have a part; what is in the parts is not looked at."""
        return set(self._parts())

    def rows_of(self, group: Group) -> list[dict]:
        """The rows of one committed group, finished stage or not. Raises StoreError when its part was altered."""
        part = self._parts().get(group.index)
        if part is None:
            found = f"none for group {group.index}"
            raise StoreError("a part is missing", where=self.dir, found=found, way_out="run again")
        return _rows(part)

    def commit(self, group: Group, rows: list[dict]) -> None:
        """Writes a group's rows. Doing it twice with the same rows is the same as once."""
        data = b"".join(map(dump, rows))
        name = f"part-{group.index:05d}-n{len(rows)}-{hashlib.sha256(data).hexdigest()[:16]}.jsonl"
        for there in self.dir.glob(f"part-{group.index:05d}-*.jsonl"):
            if there.name != name:
                raise _two(there, self.dir / name)
        if not (self.dir / "stage.json").exists():
            commit_file(self.dir / "stage.json", json.dumps(self._identity, indent=1).encode())
        commit_file(self.dir / name, data)

    def finish(self, totals: Mapping[str, object]) -> dict:
        """Declares the stage done; returns the totals. All rows are accounted for: rows_in == kept + dropped + faulty.

        `dropped` and `faulty` are counts, or counts by reason. A row lost is a defect of ours: AssertionError.
        """
        conserved(totals)
        missing = self.missing()
        if missing:
            raise AssertionError(f"{self.dir}: group {missing[0].index} and {len(missing) - 1} others have no part")
        for leftover in self.dir.glob(".*.tmp-*"):  # of processes that were killed; ours are renamed by now
            leftover.unlink(missing_ok=True)
        listed = self._parts()
        parts = [listed[group.index].name for group in self.groups]
        success = {**self._identity, "parts": parts, "totals": dict(totals)}
        commit_file(self.dir / "SUCCESS.json", json.dumps(success, indent=1, allow_nan=False).encode())
        return success["totals"]

    @property
    def done(self) -> bool:
        """Whether the stage was finished and all its parts are still there and whole."""
        success = _read(self.dir / "SUCCESS.json")
        if success is None or self.missing():
            return False
        listed = self._parts()
        return success["parts"] == [listed[group.index].name for group in self.groups]

    @property
    def totals(self) -> dict:
        """What `finish` was told."""
        return self._success()["totals"]

    @property
    def digest(self) -> str:
        """16 hex digits for the content of all rows: what a following stage puts in its own fingerprint."""
        return fingerprint_of(self._success()["parts"])

    def read(self) -> Iterator[dict]:
        """All rows in the order of the input. Raises StoreError when the stage is not done or a part was altered."""
        parts = self._parts()
        for name, group in zip(self._success()["parts"], self.groups):
            if group.index not in parts or parts[group.index].name != name:
                raise StoreError("a part is missing", where=self.dir / name, way_out="run again to make it once more")
            yield from _rows(parts[group.index])

    def committed(self) -> Iterator[dict]:
        """All rows that are committed so far, in the order of the input; for counting before `finish`."""
        parts = self._parts()
        for index in sorted(parts):
            yield from _rows(parts[index])

    def _success(self) -> dict:
        success = _read(self.dir / "SUCCESS.json")
        if success is None:
            raise StoreError(
                "the stage is not finished", where=self.dir, expected="SUCCESS.json", way_out="run it first"
            )
        return success

    def _parts(self) -> dict[int, Path]:
        parts: dict[int, Path] = {}
        for file in sorted(self.dir.glob("part-*.jsonl")):
            match = _PART.fullmatch(file.name)
            if match is None or int(match[1]) >= len(self.groups):
                raise StoreError("not a part of this stage", where=file, way_out="move it out of the folder")
            if int(match[1]) in parts:
                raise _two(parts[int(match[1])], file)
            parts[int(match[1])] = file
        return parts

    def _check_owner(self, name: str) -> None:
        owner = _read(self.dir / name)
        for key, ours in self._identity.items() if owner is not None else ():
            if owner.get(key) != ours:
                raise StoreError(
                    f"the stage was made with another {key}",
                    where=self.dir,
                    found=owner.get(key),
                    expected=ours,
                    way_out="write to another --out, or delete this folder to make the stage again",
                )


def _rows(file: Path) -> list[dict]:
    """The rows of a part that is what its name says."""
    data = file.read_bytes()
    _, count, expected = _PART.fullmatch(file.name).groups()
    found = hashlib.sha256(data).hexdigest()[:16]
    if found != expected:
        raise StoreError(
            "the part was torn or altered", where=file, found=f"SHA-256 {found}", expected=expected, way_out=_REDO
        )
    rows = [json.loads(line) for line in data.split(b"\n")[:-1]]
    if len(rows) != int(count):
        raise StoreError("the part has another length", where=file, found=len(rows), expected=count, way_out=_REDO)
    return rows


def _two(one: Path, other: Path) -> StoreError:
    return StoreError(
        "two different parts claim one group",
        where=one.parent,
        found=f"{one.name} and {other.name}",
        way_out="delete the one that you do not trust, or both to make the group again",
    )


def _read(file: Path) -> dict | None:
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise StoreError("the file was torn or altered", where=file, way_out="delete it and run again") from None


def conserved(totals: Mapping[str, object]) -> dict:
    """The totals, after checking that rows in = kept + dropped + faulty; `dropped` and `faulty` may be by reason."""
    counts = {key: _count(totals.get(key, 0)) for key in ("rows_in", "kept", "dropped", "faulty")}
    if counts["rows_in"] != counts["kept"] + counts["dropped"] + counts["faulty"]:
        raise AssertionError(f"rows were lost or made up: {counts}")
    return dict(totals)


def _count(value: object) -> int:
    return sum(value.values()) if isinstance(value, Mapping) else int(value)
