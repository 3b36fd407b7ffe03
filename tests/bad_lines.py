"""Reads files with lines that are no rows, and counts what came of them."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

from defects import DEFECTS, good_lines, mutated

from nemo_sdg.records import Fault, Prompt, read_rows
from nemo_sdg.store.files import dump

SLOWEST_S = 1.0


def read(folder: Path, lines: list[bytes]) -> tuple[list[Prompt], list[Fault]]:
    (folder / "lines.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return read_rows(folder / "lines.jsonl", Prompt)


def written(rows: list[Prompt]) -> bytes:
    """The rows as the store writes them."""
    return b"".join(dump(row.to_row()) for row in rows)


def with_one(folder: Path, name: str, place: str) -> list[str]:
    """What is wrong when a file of five good rows has a defect in a place."""
    bad, reason = DEFECTS[name]
    good = good_lines(5)
    at = {"first": 0, "in the middle": 2, "last": 5}[place]
    if (name, place) == ("an id again", "first"):
        at = 1  # the second of two is the one again
    if (name, place) == ("a byte-order mark within", "first"):
        at = 1  # at the very beginning it is not within
    rows, faults = read(folder, [*good[:at], bad, *good[at:]])
    if [(fault.line, reason in fault.reason, len(fault.reason) <= 400) for fault in faults] != [(at + 1, True, True)]:
        return [f"{name}, {place}: {[(fault.line, fault.reason) for fault in faults]}, expected {reason}"]
    if written(rows) != written(read(folder, good)[0]):
        return [f"{name}, {place}: the good rows are others"]
    return []


def fuzz(folder: Path, *, count: int, seed: int, alone: bool) -> dict[str, float]:
    """Reads mutated lines among good ones, if `alone` also each by itself: what was kept, set aside, and the slowest.

    Raises AssertionError where a good row is lost or changed, a row could not be written, or a line is lost.
    """
    chance = random.Random(seed)
    good = good_lines(count // 50)
    lines = list(good)
    for number in range(count):
        lines.insert(chance.randrange(len(lines) + 1), mutated(number, chance))
    rows, faults = read(folder, lines)
    asked = sum(bool(data.removeprefix(b"\xef\xbb\xbf" if i == 0 else b"").strip()) for i, data in enumerate(lines))
    assert len(rows) + len(faults) == asked, "a line was lost or made up"
    places = Counter(fault.line for fault in faults)
    assert max(places.values()) == 1 and all(fault.reason and len(fault.reason) <= 400 for fault in faults)
    kept = [row for row in rows if row.id.startswith("good ")]
    order = {row.id: row for row in read(folder, good)[0]}
    assert {row.id for row in kept} == set(order) and all(written([row]) == written([order[row.id]]) for row in kept)
    for data in written(rows).splitlines():
        json.loads(data, parse_constant=lambda constant: 1 / 0)
    slowest = 0.0
    for data in lines if alone else ():
        began = time.process_time()
        read(folder, [data])
        slowest = max(slowest, time.process_time() - began)
    return {"lines": asked, "kept": len(rows), "faulty": len(faults), "slowest": slowest}


def not_finite(run: Path) -> list[str]:
    """Files of a run that hold a number which is none."""
    found = []
    for file in [*run.rglob("*.jsonl"), *run.rglob("*.json")]:
        for line in file.read_bytes().split(b"\n") if file.suffix == ".jsonl" else [file.read_bytes()]:
            try:
                json.loads(line or b"0", parse_constant=_refused)
            except ValueError:
                found.append(f"{file}: {line[:80]!r}")
    return found


def _refused(constant: str) -> None:
    raise ValueError(constant)
