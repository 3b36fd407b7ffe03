"""The rows of a round as numbers, without their texts; and the texts of the few that are shown.

Each part of a stage is read once for the numbers, and the parts that have rows to show once more. A part that is not
there any more, or not whole, is left out and counted: a run that is at work changes under the reader.
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nemo_sdg.config import MISSING, RunConfig, Select
from nemo_sdg.errors import StoreError
from nemo_sdg.quality.among import NEAR_DUPLICATE, above_share, decided_anew
from nemo_sdg.quality.revision import root_of
from nemo_sdg.quality.rules import checks, complete, scalarise, thresholds, usable
from nemo_sdg.quality.text import hash64, ngrams, tokens
from nemo_sdg.records import Decision, Scored
from nemo_sdg.store.parts import part_lines
from nemo_sdg.store.seals import read_json
from nemo_sdg.store.waves import begun_parts, candidates

BAD, SETTLED, KEPT, NEAR, SHARE = 1, 2, 4, 8, 16
"""Of a row: its text, its end or a check speaks against it; it was dropped for something that only the selection itself
can see; it was kept. The last two were dropped for that as well, but beside others and late: a near duplicate, or above
the share of its group. Until then such a row takes part in what the others are held against."""
_TOPICS = ("topic", "kind")
_FEW = 40
"""First words of prompts that may stand for topics at most."""
_MOST_TOPICS = 1000
"""Topics that are told apart."""


@dataclass
class Rows:
    """Of one round, numbered from 0 in the order of the stage."""

    round: int
    decided: bool
    """Whether selection has decided on them; else they are those that are scored so far."""
    files: list[Path] = field(default_factory=list)
    skipped: int = 0
    """Parts that could not be read."""
    scores: dict[str, array] = field(default_factory=dict)
    """By attribute, and by label of the user's; NaN where not finite, MISSING where not scored."""
    scalars: array = field(default_factory=lambda: array("d"))
    """NaN where a score is not finite."""
    flags: array = field(default_factory=lambda: array("B"))
    characters: array = field(default_factory=lambda: array("q"))
    samples: array = field(default_factory=lambda: array("q"))
    waves: array = field(default_factory=lambda: array("i"))
    revisions: array = field(default_factory=lambda: array("i"))
    names: array = field(default_factory=lambda: array("q"))
    """Hashes of ids; those below are of conversations, texts and the answers that versions go back to."""
    prompts: array = field(default_factory=lambda: array("q"))
    texts: array = field(default_factory=lambda: array("q"))
    roots: array = field(default_factory=lambda: array("q"))
    places: array = field(default_factory=lambda: array("q"))
    """File and line of each row, as file * 2^32 + line."""
    topics: dict[str, array] = field(default_factory=lambda: {name: array("i") for name in (*_TOPICS, "word")})
    topic_names: dict[str, dict[str, int]] = field(default_factory=lambda: {name: {} for name in (*_TOPICS, "word")})
    ids: dict[int, str] = field(default_factory=dict)
    """Of the rows that may be shown."""
    grams: dict[int, np.ndarray] = field(default_factory=dict)
    """Of some rows the hashes of their pairs of words, thinned out alike in all rows."""
    makers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(role, digest) that rows name as what made them."""

    def __len__(self) -> int:
        return len(self.scalars)

    @property
    def kept(self) -> np.ndarray:
        return (np.array(self.flags, np.uint8) & KEPT) > 0

    def topic(self) -> tuple[str, list[str], np.ndarray] | None:
        """(what it is, the names, each row's number) of the column that rows are balanced by: topic, kind, or else the
        first word of the prompt where these are few."""
        for column in (*_TOPICS, "word"):
            known = self.topic_names[column]
            if len(known) > 1 and (column != "word" or len(known) <= _FEW):
                what = "first word of the prompt" if column == "word" else column
                return what, list(known), np.array(self.topics[column], np.int32)
        return None


def read_rows(folder: Path, number: int, config: RunConfig, most: int, most_grams: int) -> Rows | None:
    """The decisions of a round, or before there are any the scored rows so far; None where there are none of either.

    Args:
        folder: of the round.
        most: rows of which ids are kept; beyond it whole prompts are left out, by a hash.
        most_grams: rows of which pairs of words are kept.
    """
    decisions = folder / "decisions"
    decided = (decisions / "SUCCESS.json").exists()
    begun = begun_parts(folder, config.revise.passes)
    parts = [decisions] if decided else [part.folder(folder) / candidates(config) for part in begun]
    rows = Rows(number, decided, [file for place in parts for file in part_files(place)])
    count = sum(int(file.name.split("-n")[1].split("-")[0]) for file in rows.files)
    if not count:
        return None
    size = sum(_size(file) for file in rows.files)
    thin = 1 << max(0, math.ceil(math.log2(max(size / 6 * min(1.0, most_grams / count) / 400_000, 1.0))))
    _fill(rows, config.select, min(1.0, most / count), min(1.0, most_grams / count), np.uint64(thin))
    if len(rows.ids) > most:  # a hash draws about so many
        beyond = sorted(_unit(rows.prompts[row]) for row in rows.ids)[most]
        rows.ids = {row: name for row, name in rows.ids.items() if _unit(rows.prompts[row]) < beyond}
    return rows if len(rows) else None


def part_files(place: Path) -> list[Path]:
    """The parts of a stage that are there now, in order; a finished stage says which are its own."""
    try:
        success = read_json(place / "SUCCESS.json")
    except StoreError:
        success = None
    return [place / name for name in success["parts"]] if success else sorted(place.glob("part-*-n*-*.jsonl"))


def shown(rows: Rows, numbers: Iterable[int]) -> dict[int, Scored]:
    """The rows themselves, of these numbers; without those that cannot be read any more."""
    wanted: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row in numbers:
        file, line = divmod(rows.places[row], 1 << 32)
        wanted[file].append((line, row))
    found: dict[int, Scored] = {}
    for file in sorted(wanted):
        lines = _lines(rows.files[file])
        for line, row in wanted[file]:
            if lines is not None:
                found[row] = _row(json.loads(lines[line]), rows.decided)
    return found


def _fill(rows: Rows, select: Select, share: float, share_grams: float, thin: np.uint64) -> None:
    for index, file in enumerate(rows.files):
        lines = _lines(file)
        if lines is None:
            rows.skipped += 1
            continue
        for line, text in enumerate(lines):
            row = _row(json.loads(text), rows.decided)
            number = len(rows)
            rows.places.append((index << 32) + line)
            _numbers(rows, row, number, select)
            if _unit(rows.prompts[number]) <= share:
                rows.ids[number] = row.id
            if _unit(rows.names[number]) <= share_grams:
                pairs = ngrams(tokens(row.response).hashes_T, 2)
                rows.grams[number] = pairs[pairs % thin == 0] if thin > 1 else pairs


def _numbers(rows: Rows, row: Scored, number: int, select: Select) -> None:
    for name in row.scores:
        if name not in rows.scores:
            rows.scores[name] = array("d", [MISSING]) * number
    for name, column in rows.scores.items():
        column.append(row.scores.get(name, MISSING))
    against = usable(row.response) or complete(row.finish_reason, select) or next(iter(checks(row.extra, select)), None)
    flags = BAD if against else 0
    if isinstance(row, Decision):
        rows.scalars.append(row.scalar)
        if row.kept:
            flags |= KEPT
        elif row.reason == NEAR_DUPLICATE:
            flags |= NEAR
        elif row.reason in (above_share(*one) for one in select.balance.items()):
            flags |= SHARE
        elif not (decided_anew(row.reason) or row.reason == against or row.reason == thresholds(row.scores, select)):
            flags |= SETTLED
    else:
        rows.scalars.append(scalarise(row.scores, select.weights))
    rows.flags.append(flags)
    rows.characters.append(len(row.response))
    rows.samples.append(min(row.sample, 2**63 - 1))
    rows.waves.append(_whole(row.provenance.get("wave")))
    rows.revisions.append(_whole(row.provenance.get("revision")))
    rows.names.append(hash64(row.id))
    rows.prompts.append(hash64("\x1f".join(part for turn in row.messages for part in turn.values())))
    rows.texts.append(hash64(row.response))
    rows.roots.append(hash64(root_of(row)))
    word = next(iter(row.messages[-1]["content"].split(None, 1)), "")
    for column, known in rows.topic_names.items():
        value = word if column == "word" else row.extra.get(column)
        name = value if isinstance(value, str) else "none"
        if name not in known and len(known) > _MOST_TOPICS:
            name = "others"
        rows.topics[column].append(known.setdefault(name, len(known)))
    for role in ("policy", "reward"):
        rows.makers[role, str(row.provenance.get(role))] += 1


def _row(found: dict, decided: bool) -> Scored:
    return Decision.believed(found) if decided else Scored.believed(found)


def _lines(file: Path) -> list[bytes] | None:
    try:
        return part_lines(file)
    except (StoreError, OSError):
        return None


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _unit(name: int) -> float:
    """A hash as a number from 0 to 1, the same for the same text."""
    return (name & (1 << 64) - 1) / (1 << 64)


def _whole(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 31 else 0
