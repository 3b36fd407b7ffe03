"""The rows of one stage: fixed row groups, one committed file per group, SUCCESS.json last.

A part's name says which group it is, how many rows it has and what their SHA-256 is, so a listing is the
whole truth and there is no ledger that could be torn. Rows that were set aside stand beside it, in a file that is
named alike. Groups follow from the row order alone, never from the number of ranks: any rank may commit any group.
Where a model was asked for what the rows were made from, its answers are stages of their own in folders answers*, which
SUCCESS.json lists too.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Iterator, Mapping, Sequence

from nemo_sdg.config.values import fingerprint as fingerprint_of
from nemo_sdg.errors import StoreError
from nemo_sdg.store import disk
from nemo_sdg.store.files import commit_file, digest, refusing, sync
from nemo_sdg.store.parts import check_part, group_of, named, part_lines, read_part, two_parts
from nemo_sdg.store.seals import commit_json, read_json

_AGAIN = "delete the folder of the stage and run again to make it once more"
_ASIDE = "rows that were set aside"


@dataclass(frozen=True)
class Group:
    """Rows [start, stop) of a stage's input, which become one file."""

    index: int
    start: int
    stop: int
    turn: int = 0
    """Which of those that work on the same rows makes it."""


class StageStore:
    """A stage's folder. `fingerprint` names its settings and inputs, `rows` is the length of its input. Where several
    work on each row, `turns` of them, their groups of the same rows follow one another.

    Raises StoreError when the folder belongs to another fingerprint, or a part in it is not what its name says.
    """

    def __init__(self, dir: Path, fingerprint: str, rows: int, group_size: int, turns: int = 1) -> None:
        self.dir, self.fingerprint, self.rows, self.group_size = Path(dir), fingerprint, rows, group_size
        self.turns = turns
        self._identity = {"fingerprint": fingerprint, "rows": rows, "group_size": group_size}
        self._identity |= {"turns": turns} if turns > 1 else {}
        self._check_owner("stage.json")
        self._check_owner("SUCCESS.json")
        self._seen: dict[int, Path] = {}

    @classmethod
    def finished(cls, dir: Path) -> StageStore:
        """The store of a finished stage, for its readers. Raises StoreError when it is not finished."""
        success = read_json(Path(dir) / "SUCCESS.json")
        if success is None:
            raise StoreError("the stage is not finished", where=dir, expected="SUCCESS.json", way_out="run it first")
        return cls(dir, success["fingerprint"], success["rows"], success["group_size"], success.get("turns", 1))

    def beside(self, dir: Path, fingerprint: str) -> StageStore:
        """The store of a stage whose groups are those of this one: each has a part for each part here."""
        return StageStore(dir, fingerprint, self.rows, self.group_size, self.turns)

    @cached_property
    def groups(self) -> list[Group]:
        spans = [(start, min(start + self.group_size, self.rows)) for start in range(0, self.rows, self.group_size)]
        made = [(*span, turn) for span in spans for turn in range(self.turns)]
        return [Group(index, *group) for index, group in enumerate(made)]

    def missing(self) -> list[Group]:
        """The groups that have no part yet; the parts that are there have been read and found whole."""
        parts = self._parts()
        for file in parts.values():
            check_part(file)
        return [group for group in self.groups if group.index not in parts]

    def present(self) -> set[int]:
        """Indices of the groups that have a part; what is in the parts is not looked at."""
        return set(self._parts())

    def rows_of(self, group: Group) -> list[dict]:
        """The rows of one committed group, finished stage or not. Raises StoreError when its part was altered."""
        part = self.part_of(group)
        if part is None:
            found = f"none for group {group.index}"
            raise StoreError("a part is missing", where=self.dir, found=found, way_out="run again")
        return read_part(part)

    def part_of(self, group: Group) -> Path | None:
        """The part of one group, if there is one. The folder is listed anew only for a part that was not seen yet: a
        listing for each group would cost the square of their number."""
        if group.index not in self._seen or not self._seen[group.index].exists():
            self._seen = self._parts()
        return self._seen.get(group.index)

    def set_aside(self, group: Group, rows: list[dict]) -> None:
        """Writes what is said of a group's rows that its part will not have; comes before `commit`.

        What an earlier attempt, which was killed before its commit, has left of the group goes.
        """
        name, data = named("faulty", group.index, rows)
        stale = [self.dir / other for other in self._left.get(group.index, ()) if other != name]
        with refusing(self.dir):
            for file in stale:
                disk.fs.unlink(file)
            if stale:
                sync(self.dir)
        if rows:
            self._claim()
            commit_file(self.dir / name, data)
        self._left[group.index] = {name} if rows else set()

    def aside(self) -> Counter[str]:
        """How many rows were set aside in all groups, by their "reason"."""
        files = sorted(self.dir.glob("faulty-*.jsonl"))
        return Counter(row["reason"] for file in files for row in read_part(file))

    def commit(self, group: Group, rows: Sequence[dict | bytes]) -> None:
        """Writes a group's rows, or the lines that they are. Doing it twice with the same rows is the same as once."""
        name, data = named("part", group.index, rows)
        there = self._begun.setdefault(group.index, self.dir / name)
        if there.name != name:
            raise two_parts(there, self.dir / name)
        self._claim()
        commit_file(self.dir / name, data)

    def finish(self, totals: Mapping[str, object]) -> dict:
        """Declares the stage done; returns the totals. All rows are accounted for: rows_in == kept + dropped + faulty.

        `dropped` and `faulty` are counts, or counts by reason. A row lost is a defect of ours: AssertionError.
        """
        conserved(totals)
        missing = self.missing()
        if missing:
            raise AssertionError(f"{self.dir}: group {missing[0].index} and {len(missing) - 1} others have no part")
        listed = self._parts()
        parts = [listed[group.index].name for group in self.groups]
        success = {**self._identity, "parts": parts, "faulty": self._faulty(), "totals": dict(totals)}
        answers = self._answers()
        success |= {"answers": answers} if answers else {}
        commit_json(self.dir / "SUCCESS.json", success)
        return success["totals"]

    @property
    def done(self) -> bool:
        """Whether the stage was finished and all its parts are still there and whole."""
        success = read_json(self.dir / "SUCCESS.json")
        if success is None or self.missing():
            return False
        self._check_faulty(success)
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
        return map(json.loads, self.lines())

    def lines(self) -> Iterator[bytes]:
        """As `read`, the rows as they stand there, each with its line end."""
        parts = self._parts()
        for name, group in zip(self._success()["parts"], self.groups):
            if group.index not in parts or parts[group.index].name != name:
                raise StoreError("a part is missing", where=self.dir / name, way_out="run again to make it once more")
            yield from part_lines(parts[group.index])

    def problems(self) -> Iterator[str]:
        """What is wrong with the files of a finished stage, one sentence each."""
        success = self._success()
        expected = {*success["parts"], *success["faulty"], *(["stage.json"] if self.groups else [])}
        there = {file.name for pattern in ("part-*", "faulty*", "stage.json") for file in self.dir.glob(pattern)}
        for name in sorted(expected | there):
            file = self.dir / name
            try:
                if name not in there:
                    raise StoreError("the file is not there", where=file, way_out="run again to make it once more")
                if name not in expected:
                    raise StoreError("not a file of this stage", where=file, way_out="move it out of the folder")
                if name in success["parts"]:
                    check_part(file)
                elif name in success["faulty"] and digest(file) != success["faulty"][name]:
                    raise _not_those(_ASIDE, file, digest(file), success["faulty"][name])
            except StoreError as error:
                yield str(error)

        listed, there = success.get("answers", {}), self._answers()
        for name in sorted({*listed, *there}):
            if listed.get(name) != there.get(name):
                yield str(_not_those("answers", self.dir / name, there.get(name), listed.get(name)))

    def committed(self) -> Iterator[dict]:
        """All rows that are committed so far, in the order of the input; for counting before `finish`."""
        parts = self._parts()
        for index in sorted(parts):
            yield from read_part(parts[index])

    def _success(self) -> dict:
        success = read_json(self.dir / "SUCCESS.json")
        if success is None:
            raise StoreError(
                "the stage is not finished", where=self.dir, expected="SUCCESS.json", way_out="run it first"
            )
        return success

    @cached_property
    def _begun(self) -> dict[int, Path]:
        """The parts that were there before this process committed any, and its own; `finish` lists them anew."""
        return self._parts()

    @cached_property
    def _left(self) -> dict[int, set[str]]:
        """Names of the files of rows that were set aside, by group, as `_begun`."""
        found: dict[int, set[str]] = {}
        for file in self.dir.glob("faulty-*.jsonl"):
            found.setdefault(group_of(file), set()).add(file.name)
        return found

    def _parts(self) -> dict[int, Path]:
        parts: dict[int, Path] = {}
        for file in sorted(self.dir.glob("part-*.jsonl")):
            index = group_of(file)
            if index >= len(self.groups):
                raise StoreError("not a part of this stage", where=file, way_out="move it out of the folder")
            if index in parts:
                raise two_parts(parts[index], file)
            parts[index] = file
        return parts

    def _faulty(self) -> dict[str, str]:
        """Digests of the files with rows that were set aside, by name."""
        return {file.name: digest(file) for file in sorted(self.dir.glob("faulty*.jsonl"))}

    def _answers(self) -> dict[str, str]:
        """Digests of what the finished stages of answers say of themselves, by the names of their folders."""
        return {file.parent.name: digest(file) for file in sorted(self.dir.glob("answers*/SUCCESS.json"))}

    def _check_faulty(self, success: Mapping[str, Mapping[str, str]]) -> None:
        listed, there = success["faulty"], self._faulty()
        for name in sorted({*listed, *there}):
            if listed.get(name) != there.get(name):
                raise _not_those(_ASIDE, self.dir / name, there.get(name), listed.get(name))

    def _claim(self) -> None:
        """Says whose the folder is, before anything else stands in it."""
        if not (self.dir / "stage.json").exists():
            commit_json(self.dir / "stage.json", self._identity)

    def _check_owner(self, name: str) -> None:
        owner = read_json(self.dir / name)
        for key, ours in self._identity.items() if owner is not None else ():
            if owner.get(key) != ours:
                raise StoreError(
                    f"the stage was made with another {key}",
                    where=self.dir,
                    found=owner.get(key),
                    expected=ours,
                    way_out="write to another --out, or delete this folder to make the stage again",
                )


def _not_those(what: str, place: Path, found: str | None, expected: str | None) -> StoreError:
    return StoreError(
        f"the {what} are not those of the finished stage", where=place, found=found or "nothing",
        expected=expected or "nothing", way_out=_AGAIN,
    )  # fmt: skip


def conserved(totals: Mapping[str, object]) -> dict:
    """The totals, after checking that rows in = kept + dropped + faulty; `dropped` and `faulty` may be by reason."""
    counts = {key: _count(totals.get(key, 0)) for key in ("rows_in", "kept", "dropped", "faulty")}
    if counts["rows_in"] != counts["kept"] + counts["dropped"] + counts["faulty"]:
        raise AssertionError(f"rows were lost or made up: {counts}")
    return dict(totals)


def _count(value: object) -> int:
    return sum(value.values()) if isinstance(value, Mapping) else int(value)
