"""What nearly passed: how far it is from passing, and how a revision of it is asked for.

A revision is asked for in a dialogue, but it is an answer to the prompt itself: only its provenance says what it
revises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from nemo_sdg.config.selection import MISSING, Select
from nemo_sdg.quality.rules import checks, complete, scalarise, usable
from nemo_sdg.records import Prompt, Response, Scored
from nemo_sdg.records.broken import JUDGED_COLUMNS, NO_REASONS, OFF_TOPIC

_COLUMN = "revises"


@dataclass(frozen=True)
class Shortfall:
    """A limit that a row misses."""

    name: str
    """An attribute, or scalar."""
    score: float
    limit: float
    kind: str
    """minimum or maximum."""

    @property
    def distance(self) -> float:
        return abs(self.limit - self.score)


def shortfalls(row: Scored, settings: Select) -> list[Shortfall] | None:
    """The limits that a row misses; empty for one that passes them all, None for one that another answer does not mend:
    it may be the prompt that is off topic."""
    scalar = scalarise(row.scores, settings.weights)
    if usable(row.response) or complete(row.finish_reason, settings) or not math.isfinite(scalar):
        return None
    if {OFF_TOPIC, NO_REASONS} & set(checks(row.extra, settings)):
        return None
    limited = (*settings.minimum, *settings.maximum)
    if any(row.scores.get(name, MISSING) == MISSING for name in limited):
        return None
    found = [
        Shortfall(name, row.scores[name], low, "minimum")
        for name, low in settings.minimum.items()
        if row.scores[name] < low
    ]
    found += [
        Shortfall(name, row.scores[name], high, "maximum")
        for name, high in settings.maximum.items()
        if row.scores[name] > high
    ]
    if settings.minimum_scalar is not None and scalar < settings.minimum_scalar:
        found.append(Shortfall("scalar", scalar, settings.minimum_scalar, "minimum"))
    return found


def good_enough(row: Scored, settings: Select) -> bool:
    """Whether a row misses no limit and breaks no check."""
    return shortfalls(row, settings) == [] and not checks(row.extra, settings)


def root_of(row: Response) -> str:
    """The id of the answer that a version goes back to; its own, if it revises nothing."""
    root = row.provenance.get("root") if _COLUMN in row.provenance else None
    return root if isinstance(root, str) else row.id  # a file of the user's may mean something else by it


def ask(row: Scored, request: str, revision: int) -> Prompt:
    """The prompt that asks for the next version of an answer.

    Args:
        request: what the user says to the answer.
        revision: the pass, from 1.
    """
    of = {"id": row.id, "root": root_of(row), "prompt_id": row.prompt_id, "sample": row.sample}
    turns = ({"role": "assistant", "content": row.response}, {"role": "user", "content": request})
    # A column of the user's may be called the same, and comes back with the answer.
    of |= {"turns": len(row.messages), "own": {_COLUMN: row.extra[_COLUMN]} if _COLUMN in row.extra else {}}
    columns = {name: value for name, value in row.extra.items() if name not in JUDGED_COLUMNS} | {_COLUMN: of}
    return Prompt(f"{row.id}/r{revision}", (*row.messages, *turns), columns)


def answered(row: Response) -> Response:
    """The answer to `ask` as an answer to the prompt itself."""
    of = row.extra[_COLUMN]
    return replace(
        row,
        prompt_id=of["prompt_id"],
        sample=of["sample"],
        messages=row.messages[: of["turns"]],
        provenance={**row.provenance, "root": of["root"], _COLUMN: of["id"]},
        extra={name: value for name, value in row.extra.items() if name != _COLUMN} | of["own"],
    )
