"""Files of a run, by kind, and what can happen to them."""

from __future__ import annotations

import io
import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path

from nemo_sdg.console import Console
from nemo_sdg.store.verifying import check_entry, verify_run

NOTES = {"run.lock", "logs/events.jsonl", "logs/launcher.log", "logs/rank-N.log"}
"""Kinds that nothing reads back, so that nothing holds them."""
PAGE = "report.html"
"""Shows what stands in the run, so it may be altered as little as the rest; but it may be away."""


def kind_of(name: str) -> str:
    """A file's name inside its run without what counts or names a content."""
    return re.sub(r"\d+", "N", re.sub(r"-n\d+-[0-9a-f]{16}", "", name))


def kinds(run: Path) -> dict[str, Path]:
    """One file of each kind, the longest."""
    files = sorted((file for file in run.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    return {kind_of(file.relative_to(run).as_posix()): file for file in files}


def problems(run: Path, file: Path) -> list[str]:
    """What `verify` says of the part of a run that a file belongs to."""
    parts = file.relative_to(run).parts
    if len(parts) == 1:
        return verify_run(run, Console(io.StringIO()))
    return check_entry(run.joinpath(*parts[:2]))


def damaged(data: bytes, chance: random.Random, *, cuts: int, flips: int) -> Iterator[tuple[str, bytes]]:
    """(what happened, content): the content is always another."""
    for _ in range(cuts if data else 0):
        yield "cut", data[: chance.randrange(len(data))]
    for _ in range(flips if data else 0):
        at = chance.randrange(len(data))
        yield "flipped", data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    page = chance.randrange(len(data)) // 4096 * 4096 if data else 0
    zeroed = data[:page] + bytes(len(data[page : page + 4096])) + data[page + 4096 :]
    for what, other in (("zeroed", zeroed), ("longer", data + b"\n"), ("longer", data + data[-40:] + b"{}\n")):
        if other != data:
            yield what, other


def silent(run: Path, file: Path, content: bytes) -> bool:
    """Whether a file with this content passes, or what is said does not say where it is."""
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        told = problems(run, file)
        return not told or not any(str(file.parent) in problem for problem in told)
    finally:
        file.write_bytes(before)


def silent_without(run: Path, file: Path) -> bool:
    """Whether what a file belongs to passes without it."""
    before = file.read_bytes()
    file.unlink()
    try:
        inside = len(file.relative_to(run).parts) > 2
        return not (problems(run, file) if inside else verify_run(run, Console(io.StringIO())))
    finally:
        file.write_bytes(before)


def swaps(run: Path, chance: random.Random, count: int) -> list[tuple[Path, Path]]:
    """Pairs of files of different contents, those that look alike first."""
    files = [file for file in sorted(run.rglob("*")) if file.is_file()]
    files = [file for file in files if kind_of(file.relative_to(run).as_posix()) not in NOTES]
    pairs = [pair for pair in itertools.combinations(files, 2) if pair[0].read_bytes() != pair[1].read_bytes()]
    alike = [(a, b) for a, b in pairs if a.name == b.name]
    chance.shuffle(pairs)
    return (alike + pairs)[:count]


def silent_swap(run: Path, one: Path, other: Path) -> bool:
    """Whether the whole run passes with two files in each other's place."""
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    try:
        return not verify_run(run, Console(io.StringIO()))
    finally:
        one.write_bytes(contents[0])
        other.write_bytes(contents[1])
