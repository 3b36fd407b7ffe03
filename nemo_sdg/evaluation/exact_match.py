"""Exact match on held-out prompts: the last non-empty line of a greedy response is the right answer, or it is not."""

from __future__ import annotations

from collections.abc import Iterable

from nemo_sdg.evaluation.intervals import wilson
from nemo_sdg.quality.answers import is_right


def exact_match(pairs: Iterable[tuple[str, str]]) -> dict[str, float | int | None]:
    """Share of (response, answer) pairs that are right, and its Wilson interval of 95 %.

    Returns:
        {"exact_match": 0 to 1, "low", "high", "n": pairs}; None over no pairs.
    """
    outcomes = [is_right(response, answer) for response, answer in pairs]
    right, n = sum(outcomes), len(outcomes)
    low, high = wilson(right, n)
    return {"exact_match": right / n if n else None, "low": low, "high": high, "n": n}
