"""How well predicted attributes agree with the true ones: Pearson, Spearman and mean absolute error.

Ties get the mean of the ranks that they share, as HelpSteer's whole-number labels need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nemo_sdg.config import ATTRIBUTES, MISSING


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Linear correlation in [-1, 1]; None where it is undefined: fewer than two rows, or no spread."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"two lists of the same length are needed, found shapes {a.shape} and {b.shape}")
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    a, b = a - a.mean(), b - b.mean()
    # Scaling first keeps squares of very small or very large values inside the range of a float.
    a, b = a / np.abs(a).max(), b / np.abs(b).max()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def ranks(x: Sequence[float]) -> np.ndarray:
    """Ranks from 1; equal values share the mean of their places."""
    values = np.asarray(x, dtype=np.float64)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse.reshape(-1)]


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Rank correlation in [-1, 1]; None where it is undefined."""
    return pearson(ranks(x), ranks(y))


def agreement(
    predicted: Sequence[Mapping[str, float]], true: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, float | int | None]]:
    """Agreement per attribute over rows in the same order; a value of -100 on either side, or no true one, is left out.

    Returns:
        {attribute: {"pearson", "spearman", "mae", "n"}} for the five HelpSteer attributes.
    """
    if len(predicted) != len(true):
        raise ValueError(f"as many predictions as rows are needed, found {len(predicted)} and {len(true)}")
    result: dict[str, dict[str, float | int | None]] = {}
    for name in ATTRIBUTES:
        both = [(p[name], t.get(name, MISSING)) for p, t in zip(predicted, true)]
        pairs = [pair for pair in both if MISSING not in pair]
        x, y = [p for p, _ in pairs], [t for _, t in pairs]
        mae = float(np.mean(np.abs(np.subtract(x, y)))) if pairs else None
        result[name] = {"pearson": pearson(x, y), "spearman": spearman(x, y), "mae": mae, "n": len(pairs)}
    return result
