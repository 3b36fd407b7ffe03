"""Exact match on held-out prompts: the last non-empty line of a greedy response is the right answer, or it is not."""

from __future__ import annotations

from collections.abc import Iterable

from nemo_sdg.quality.answers import is_right


def exact_match(pairs: Iterable[tuple[str, str]]) -> dict[str, float | int | None]:
    """Share of (response, answer) pairs that are right: {"exact_match": 0 to 1, "n": pairs}; None over no pairs."""
    outcomes = [is_right(response, answer) for response, answer in pairs]
    return {"exact_match": sum(outcomes) / len(outcomes) if outcomes else None, "n": len(outcomes)}
