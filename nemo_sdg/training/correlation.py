"""Linear and rank correlation. Ties get the mean of the ranks that they share, as HelpSteer's whole numbers need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
