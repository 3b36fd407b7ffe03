"""How a reward model's scores have moved since the first one of a run, on the same held-out rows.

Agreement with people may stay as it was while all scores move: limits such as `select.minimum` then let other rows pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nemo_sdg.config import MISSING, Evaluate
from nemo_sdg.records import shortest_float32

MOST = 1001
"""Scores of an attribute that are kept: beyond that evenly spaced ones of their order, which moves no share by more than
a thousandth."""

Kept = dict[str, dict[str, Any]]
"""{attribute: {"mean", "deviation", "n", "scores"}}, the scores rising."""


def kept(scores: Sequence[Mapping[str, float]]) -> Kept:
    """What is remembered of a model's scores, to compare later ones with. Attributes that it does not give are left out."""
    names = dict.fromkeys(name for row in scores for name in row)
    found: Kept = {}
    for name in names:
        values = np.sort([shortest_float32(row[name]) for row in scores if row.get(name, MISSING) != MISSING])
        if len(values):
            places = np.round(np.linspace(0, len(values) - 1, min(len(values), MOST))).astype(int)
            found[name] = {
                "mean": float(values.mean()), "deviation": float(values.std()), "n": len(values),
                "scores": values[places].tolist(),
            }  # fmt: skip
    return found


def drift(first: Kept, now: Kept, limits: Evaluate) -> dict[str, dict[str, Any]]:
    """How far each attribute that both give has moved.

    Returns:
        {attribute: {"shift": difference of the means in standard deviations of the first scores (None where these are all
        one number and the mean has moved), "ks": the largest difference of the two distribution functions, 0 to 1,
        "outside": share of the scores outside the range of the first, "drifted": whether one of them is above its limit}}.
    """
    found = {}
    for name in first:
        if name not in now:
            continue
        before, after = np.array(first[name]["scores"]), np.array(now[name]["scores"])
        moved, deviation = now[name]["mean"] - first[name]["mean"], first[name]["deviation"]
        shift = moved / deviation if deviation > 0 else 0.0 if moved == 0 else None
        ks = _distance(before, after)
        outside = float(np.mean((after < before[0]) | (after > before[-1])))
        drifted = shift is None or abs(shift) > limits.drift_shift
        drifted = bool(drifted or ks > limits.drift_ks or outside > limits.drift_outside)
        found[name] = {"shift": shift, "ks": ks, "outside": outside, "drifted": drifted}
    return found


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov of two samples in rising order: sup |F_a(x) - F_b(x)|, which a step of either reaches."""
    steps = np.concatenate([a, b])
    shares = [np.searchsorted(sample, steps, side="right") / len(sample) for sample in (a, b)]
    return float(np.max(np.abs(shares[0] - shares[1])))
