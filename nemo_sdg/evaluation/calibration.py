"""What a raw score means in the marks of people: isotonic regression, which assumes only that more is more.

Zadrozny and Elkan 2002, "Transforming classifier scores into accurate multiclass probability estimates"; fitted by
scipy's pool-adjacent-violators algorithm. How good the map is, is measured on prompts that it was not fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import isotonic_regression

FOLDS = 5
"""Parts of the prompts, each calibrated by what the others tell."""
Knots = list[list[float]]
"""[[score, mark], ...], both rising; between two by straight lines, beyond the ends as at the end."""


def fit(scores: Sequence[float], marks: Sequence[float]) -> Knots:
    """The rising map from scores to marks of the least squared error, as its corners; empty without rows.

    Equal scores get one mark, the mean of theirs.
    """
    if not len(scores):
        return []
    places, inverse, counts = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True, return_counts=True)
    means = np.bincount(inverse.reshape(-1), weights=np.asarray(marks, dtype=np.float64)) / counts
    heights = isotonic_regression(means, weights=counts).x
    # Of each level its two ends are enough.
    inner = (heights[1:-1] == heights[:-2]) & (heights[1:-1] == heights[2:])
    corner = np.concatenate([[True], ~inner, [True]])[: len(places)] if len(places) > 1 else np.array([True])
    return [[float(x), float(y)] for x, y in zip(places[corner], heights[corner])]


def read(knots: Knots, scores: Sequence[float]) -> np.ndarray:
    """The marks that scores stand for."""
    x, y = zip(*knots)
    return np.interp(np.asarray(scores, dtype=np.float64), x, y)


def cross_fitted(scores: Sequence[float], marks: Sequence[float], folds: Sequence[int]) -> np.ndarray | None:
    """The mark of each score by a map that was fitted on the rows of the other folds; None where one fold has all rows.

    Args:
        folds: a number for each row, the same for all rows of a prompt.
    """
    scores, marks, folds = np.asarray(scores), np.asarray(marks), np.asarray(folds)
    if len(np.unique(folds)) < 2:
        return None
    found = np.empty(len(scores))
    for fold in np.unique(folds):
        held_out = folds == fold
        found[held_out] = read(fit(scores[~held_out], marks[~held_out]), scores[held_out])
    return found


def fold_of(name: str) -> int:
    """The part that a conversation belongs to, by its name (`records.hash_of`)."""
    return int(name, 16) % FOLDS
