"""What the order of rows is, and how much of it is length alone."""

from __future__ import annotations

import math

import numpy as np


def cut(ranks: np.ndarray, percentile: float) -> float:
    """The value at a percentile (0 to 100) of the ranks; between two by linear interpolation (numpy's default)."""
    return float(np.percentile(ranks, percentile))


def length_slope(scalars: np.ndarray, characters: np.ndarray) -> tuple[float, float]:
    """(mean of log(characters), slope b) of the least-squares line scalar = a + b log(characters).

    Zero slope where there is no line: fewer than two rows, or all of one length. The sums are exact (fsum), so that the
    order of the rows decides nothing.
    """
    logs = np.log(np.maximum(characters, 1).astype(np.float64))
    if not len(logs) or logs.min() == logs.max():
        return 0.0, 0.0
    mean_log, mean = math.fsum(logs) / len(logs), math.fsum(scalars) / len(scalars)
    away = logs - mean_log
    return mean_log, math.fsum(away * (scalars - mean)) / math.fsum(away * away)


def without_length(scalars: np.ndarray, characters: np.ndarray, mean_log: float, slope: float) -> np.ndarray:
    """The scalars as they would be if every response had the mean logarithm of characters."""
    return scalars - slope * (np.log(np.maximum(characters, 1).astype(np.float64)) - mean_log)


def length_honesty(characters: np.ndarray, kept: np.ndarray) -> dict[str, float]:
    """The share of a selection that a rule which knows nothing but length would have kept, too.

    Args:
        characters: of every row's response.
        kept: whether the selection has the row.
    Returns:
        `longest` and `shortest`: the share when as many rows are taken from that end, of equal lengths the expected
        share when chance decides; and `chance`: the share when as many are drawn at random. Empty without a selection.
    """
    count = int(np.count_nonzero(kept))
    if not count:
        return {}
    shares = {"longest": _reproduced(characters, kept, count), "shortest": _reproduced(-characters, kept, count)}
    return {**shares, "chance": count / len(kept)}


def _reproduced(lengths: np.ndarray, kept: np.ndarray, count: int) -> float:
    border = np.partition(lengths, len(lengths) - count)[len(lengths) - count]
    above, at = lengths > border, lengths == border
    places = count - np.count_nonzero(above)
    expected = places * np.count_nonzero(at & kept) / np.count_nonzero(at)
    return float((np.count_nonzero(above & kept) + expected) / count)
