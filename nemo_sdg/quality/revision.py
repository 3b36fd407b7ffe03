"""What nearly passed: how far it is from passing, how a revision of it is asked for, and which version is kept.

A revision is asked for in a dialogue, but it is an answer to the prompt itself: only its provenance says what it
revises.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nemo_sdg.config.selection import MISSING, Select
from nemo_sdg.quality.rules import complete, scalarise, usable
from nemo_sdg.records import Prompt, Response, Scored

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
    """The limits that a row misses; empty for one that passes them all, None for one that no better score mends."""
    scalar = scalarise(row.scores, settings.weights)
    if usable(row.response) or complete(row.finish_reason, settings) or not math.isfinite(scalar):
        return None
    limited = (*settings.minimum, *settings.maximum)
    if any(row.scores[name] == MISSING for name in limited):
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


def root_of(row: Response) -> str:
    """The id of the answer that a version goes back to; its own, if it revises nothing."""
    return row.provenance.get("root", row.id)


def best_versions(rows: Iterable[Scored], settings: Select) -> list[Scored]:
    """Of each answer and its revisions the one that passes, or else has the highest scalar; of equals the first.

    In the order of the first versions.
    """
    best: dict[str, Scored] = {}
    for row in rows:
        there = best.get(root_of(row))
        if there is None or _rank(row, settings) > _rank(there, settings):
            best[root_of(row)] = row
    return list(best.values())


def superseded(rows: Iterable[Scored], settings: Select) -> set[str]:
    """Ids of the rows that are not the best version of their answer."""
    best: dict[str, tuple[str, tuple[bool, float]]] = {}
    older = set()
    for row in rows:
        root, rank = root_of(row), _rank(row, settings)
        if root not in best:
            best[root] = row.id, rank
            continue
        name, before = best[root]
        older.add(name if rank > before else row.id)
        if rank > before:
            best[root] = row.id, rank
    return older


def _rank(row: Scored, settings: Select) -> tuple[bool, float]:
    scalar = scalarise(row.scores, settings.weights)
    return shortfalls(row, settings) == [], scalar if math.isfinite(scalar) else -math.inf


def ask(row: Scored, request: str, revision: int) -> Prompt:
    """The prompt that asks for the next version of an answer.

    Args:
        request: what the user says to the answer.
        revision: the pass, from 1.
    """
    of = {"id": row.id, "root": root_of(row), "prompt_id": row.prompt_id, "sample": row.sample}
    turns = ({"role": "assistant", "content": row.response}, {"role": "user", "content": request})
    columns = {**row.extra, _COLUMN: {**of, "turns": len(row.messages)}}
    return Prompt(f"{row.id}/r{revision}", (*row.messages, *turns), columns)


def answered(row: Response) -> Response:
    """The answer to `ask` as an answer to the prompt itself; any other answer as it is."""
    of = row.extra.get(_COLUMN)
    if of is None:
        return row
    return replace(
        row,
        prompt_id=of["prompt_id"],
        sample=of["sample"],
        messages=row.messages[: of["turns"]],
        provenance={**row.provenance, "root": of["root"], _COLUMN: of["id"]},
        extra={name: value for name, value in row.extra.items() if name != _COLUMN},
    )


@dataclass(frozen=True)
class Gain:
    """What one pass of revision won."""

    asked: int
    better: int
    """Answers of which a version of this pass is the best so far."""
    accepted: int
    """Answers that pass now and did not before."""
    before: float
    """Mean scalar of the answers that were asked for again, in their best versions before the pass."""
    after: float
    """The same, with the pass."""


def gains(passes: Sequence[Sequence[Scored]], settings: Select) -> list[Gain]:
    """What each pass won over those before it.

    Args:
        passes: the first answers, then the rows of each pass.
    """
    found, rows = [], list(passes[0])
    for revised in passes[1:]:
        roots = {root_of(row) for row in revised}
        old = {root_of(row): row for row in best_versions(rows, settings) if root_of(row) in roots}
        rows += revised
        new = {root_of(row): row for row in best_versions(rows, settings) if root_of(row) in roots}
        found.append(
            Gain(
                asked=len(roots),
                better=sum(new[root].id != old[root].id for root in roots),
                accepted=sum(
                    shortfalls(new[root], settings) == [] != shortfalls(old[root], settings) for root in roots
                ),
                before=_mean(old.values(), settings),
                after=_mean(new.values(), settings),
            )
        )
    return found


def _mean(rows: Iterable[Scored], settings: Select) -> float:
    scalars = [scalar for row in rows if math.isfinite(scalar := scalarise(row.scores, settings.weights))]
    return math.fsum(scalars) / len(scalars) if scalars else 0.0
