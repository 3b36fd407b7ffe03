"""What one response must be to be kept. Each rule is a pure function: None, or the reason to drop."""

from __future__ import annotations

import math
from typing import Any, Mapping

from nemo_sdg.config.selection import MISSING, Select
from nemo_sdg.records import CONTROL_PIECE
from nemo_sdg.records.broken import broken_checks

LEAKED = "shares a text with an evaluation file"
PERSONAL = "personal data in the"


def may_teach(reason: str | None) -> bool:
    """Whether a row may be learned from in any way. One that was dropped as poor shows a reward model what is poor; one
    that was dropped for what stands in it teaches nobody."""
    return reason is None or not reason.startswith((LEAKED, PERSONAL))


def scalarise(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted sum of the attributes that were scored.

    NaN when any score is not finite, or nothing that has a weight was scored (a reward model may give one score
    only; the others are MISSING).
    """
    scored = {name: weight for name, weight in weights.items() if scores.get(name, MISSING) != MISSING}
    if not scored or not all(map(math.isfinite, scores.values())):
        return math.nan
    return math.fsum(weight * scores[name] for name, weight in scored.items())


def usable(response: str) -> str | None:
    """Whether the text can be trained on at all, whatever its scores."""
    if not response.strip():
        return "empty response"
    if CONTROL_PIECE.search(response):
        return "control piece in the response"
    return None


def complete(finish_reason: str, settings: Select) -> str | None:
    """Whether the model ended the response itself."""
    return f"cut off by {finish_reason}" if settings.finished and finish_reason != "stop" else None


def checks(columns: Mapping[str, Any], settings: Select) -> list[str]:
    """The checks that a judged response breaks, in the words of the brief; the first is the reason to drop it."""
    return broken_checks(columns) if settings.checks else []


def thresholds(scores: Mapping[str, float], settings: Select) -> str | None:
    """The limits per attribute and on the scalar. A limit itself still passes; what is not finite, or was not scored
    although there is a limit on it, never does."""
    scalar = scalarise(scores, settings.weights)
    if all(scores.get(name, MISSING) == MISSING for name in settings.weights):
        return "nothing that has a weight was scored"
    if not math.isfinite(scalar):
        return "score not finite"
    for name in (*settings.minimum, *settings.maximum):
        if scores.get(name, MISSING) == MISSING:
            return f"{name} was not scored"
    for name, low in settings.minimum.items():
        if scores[name] < low:
            return f"{name} below {low:g}"
    for name, high in settings.maximum.items():
        if scores[name] > high:
            return f"{name} above {high:g}"
    if settings.minimum_scalar is not None and scalar < settings.minimum_scalar:
        return f"scalar below {settings.minimum_scalar:g}"
    return None
