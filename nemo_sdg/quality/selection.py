"""Which of all scored responses are kept: the rules for each one, then the best of each prompt."""

from __future__ import annotations

from typing import Iterable, Sequence

from nemo_sdg.config.selection import Select
from nemo_sdg.quality.rules import complete, scalarise, thresholds, usable
from nemo_sdg.records import Decision, Scored


def decide(rows: Sequence[Scored], settings: Select) -> list[Decision]:
    """One decision per row, in the rows' order; a row that is dropped has a reason."""
    reasons: list[str | None] = [
        usable(row.response) or complete(row.finish_reason, settings) or thresholds(row.scores, settings)
        for row in rows
    ]
    scalars = [scalarise(row.scores, settings.weights) for row in rows]
    by_prompt: dict[str, list[int]] = {}
    for index, reason in enumerate(reasons):
        if reason is None:
            by_prompt.setdefault(rows[index].prompt_id, []).append(index)
    for indices in by_prompt.values():
        # Best first; of equals the earlier sample, so that the outcome never depends on the order of arrival.
        best_first = sorted(indices, key=lambda index: (-scalars[index], rows[index].sample, rows[index].id))
        for index, reason in zip(best_first, _among(settings, (rows[index].response for index in best_first))):
            reasons[index] = reason
    return [
        Decision(**vars(row), kept=reason is None, reason=reason, scalar=scalar)
        for row, reason, scalar in zip(rows, reasons, scalars)
    ]


def _among(settings: Select, responses: Iterable[str]) -> Iterable[str | None]:
    """Reasons for the responses to one prompt, best first."""
    kept: list[str] = []
    for response in responses:
        if settings.unique and response in kept:
            yield "same text as a better one"
        elif settings.per_prompt is not None and len(kept) == settings.per_prompt:
            yield f"not among the best {settings.per_prompt} of its prompt"
        else:
            kept.append(response)
            yield None
