"""Exactly as many rows as were asked for, and one version of each answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nemo_sdg.config.selection import Select
from nemo_sdg.quality.revision import best_versions
from nemo_sdg.quality.selection import decide
from nemo_sdg.quality.rules import scalarise
from nemo_sdg.records import Decision, Scored

SUPERSEDED = "another version of it is better"


def decide_round(rows: Sequence[Scored], settings: Select) -> list[Decision]:
    """One decision per row of a whole round, in the rows' order.

    Of an answer and its revisions only the best version is considered; of what passes the best `select.target` are kept.
    """
    best = {row.id for row in best_versions(rows, settings)}
    decided = {row.id: row for row in decide([row for row in rows if row.id in best], settings)}
    for row in rows:
        if row.id not in best:
            scalar = scalarise(row.scores, settings.weights)
            decided[row.id] = Decision(**vars(row), kept=False, reason=SUPERSEDED, scalar=scalar)
    decisions = [decided[row.id] for row in rows]
    return decisions if settings.target is None else cut(decisions, settings.target)


def cut(decisions: Sequence[Decision], target: int) -> list[Decision]:
    """Keeps the `target` best of what is kept, by the scalar; of equals the earlier ones."""
    kept = [index for index, decision in enumerate(decisions) if decision.kept]
    best = set(sorted(kept, key=lambda index: (-decisions[index].scalar, index))[:target])
    reason = f"beyond the target of {target}"
    return [
        decision if index in best or not decision.kept else replace(decision, kept=False, reason=reason)
        for index, decision in enumerate(decisions)
    ]
