"""How varied a set of texts is, before and after selection, and how like the user's own rows.

All figures are of samples of one size, drawn by a hash of the rows' ids; distinct-n is of as many n-grams on both
sides, because it falls as a text grows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nemo_sdg.quality.duplicates import signatures
from nemo_sdg.quality.text import Tokens, ngrams, shingles

SAMPLE = 500
"""Texts that the figures are of, at most."""
BLEU_SAMPLE = 100
"""Texts that self-BLEU is of, at most."""
_SHINGLE = 3
_FEATURES = 1 << 16
_FOLDS = 5
_FEWEST = 2 * _FOLDS
_SEED = 0

DISTINCT_FALLS = 0.9
"""A selection narrows variety if distinct-2 falls below this share of what it was,"""
RISES = 0.05
"""or if self-BLEU or the similarity to the nearest neighbour rises by more than this."""


def compare(before: Sequence[Tokens], after: Sequence[Tokens]) -> dict[str, Any]:
    """`before`, `after` (distinct_1, distinct_2, distinct_3, self_bleu, nearest), and `narrowed`: the figures that
    say that variety narrows."""
    said: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for n in (1, 2, 3):
        grams = [_grams(side, n) for side in (before, after)]
        most = min(map(len, grams))
        for figures, some in zip(said, grams):
            figures[f"distinct_{n}"] = round(distinct(some[:most]), 4)
    for figures, side in zip(said, (before, after)):
        figures["self_bleu"] = round(self_bleu([text.hashes_T for text in side[:BLEU_SAMPLE]]), 4)
        figures["nearest"] = round(nearest(side), 4)
    narrowed = ["distinct_2"] if said[1]["distinct_2"] < DISTINCT_FALLS * said[0]["distinct_2"] else []
    narrowed += [name for name in ("self_bleu", "nearest") if said[1][name] > said[0][name] + RISES]
    return {"before": said[0], "after": said[1], "narrowed": narrowed}


def _grams(texts: Sequence[Tokens], n: int) -> np.ndarray:
    return np.concatenate([np.empty(0, np.uint64), *(ngrams(text.hashes_T, n) for text in texts)])


def distinct(grams: np.ndarray) -> float:
    """Different n-grams over all n-grams (Li et al. 2016, arXiv 1510.03055); 0 without any."""
    return len(np.unique(grams)) / len(grams) if len(grams) else 0.0


def self_bleu(texts: Sequence[np.ndarray]) -> float:
    """The mean BLEU-4 of each text against all others (Zhu et al. 2018, arXiv 1802.01886), without smoothing.

    A text of fewer than four tokens counts with the n-grams that it has. 0 for fewer than two texts.
    """
    texts = [text for text in texts if len(text)]
    if len(texts) < 2:
        return 0.0
    lengths = np.array([len(text) for text in texts])
    precisions = np.array([_precisions(texts, n) for n in (1, 2, 3, 4)])
    scores = []
    for index, length in enumerate(lengths):
        others = np.delete(lengths, index)
        closest = others[np.lexsort((others, np.abs(others - length)))[0]]
        mine = precisions[: min(4, length), index]
        if mine.min() > 0:
            scores.append(math.exp(min(0.0, 1 - closest / length) + math.fsum(np.log(mine)) / len(mine)))
    return math.fsum(scores) / len(texts)


def _precisions(texts: Sequence[np.ndarray], n: int) -> list[float]:
    """For each text the share of its n-grams that some other text has, clipped to the count there; 0 without any."""
    counted = [np.unique(ngrams(text, n), return_counts=True) for text in texts]
    sizes = [len(grams) for grams, _ in counted]
    owners, counts = np.repeat(np.arange(len(texts)), sizes), np.concatenate([counts for _, counts in counted])
    _, which = np.unique(np.concatenate([grams for grams, _ in counted]), return_inverse=True)
    # Of each gram the largest count comes first, then the next largest.
    order = np.lexsort((-counts, which))
    first = np.flatnonzero(np.diff(which[order], prepend=-1))
    most, second = counts[order[first]], np.zeros(len(first), counts.dtype)
    ends = np.append(first[1:], len(order))
    several = ends - first > 1
    second[several] = counts[order[first[several] + 1]]
    whose = owners[order[first]]
    elsewhere = np.where(whose[which] == owners, second[which], most[which])
    shared = np.bincount(owners, np.minimum(counts, elsewhere), len(texts))
    return (shared / np.maximum(np.bincount(owners, counts, len(texts)), 1)).tolist()


def nearest(texts: Sequence[Tokens]) -> float:
    """The mean, over texts, of the largest Jaccard similarity to another one, estimated from MinHash signatures."""
    sets = [shingles(text, _SHINGLE) for text in texts if len(text.hashes_T)]
    if len(sets) < 2:
        return 0.0
    made = signatures(sets)
    closest = []
    for index, signature in enumerate(made):
        alike = (made == signature).mean(axis=1)
        alike[index] = 0.0
        closest.append(float(alike.max()))
    return math.fsum(closest) / len(closest)


def likeness(made: Sequence[Tokens], real: Sequence[Tokens]) -> float | None:
    """The AUC with which a classifier tells generated texts from real ones: 0.5 is not at all, 1 is always.

    A logistic regression on hashed words and pairs of words, five-fold cross-validated with a fixed seed (a classifier
    two-sample test, Lopez-Paz and Oquab 2017, arXiv 1610.06545). None when a side has fewer than ten texts.
    """
    count = min(len(made), len(real))
    if count < _FEWEST:
        return None
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.preprocessing import normalize

    texts = [*made[:count], *real[:count]]
    grams = [np.concatenate([text.hashes_T, ngrams(text.hashes_T, 2)]) % np.uint64(_FEATURES) for text in texts]
    columns, ends = np.concatenate(grams).astype(np.int64), np.cumsum([0, *map(len, grams)])
    counts = csr_matrix((np.ones(len(columns)), columns, ends), shape=(len(texts), _FEATURES))
    counts.sum_duplicates()
    labels = np.repeat([0, 1], count)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=_SEED)
    # In the dual, for there are far fewer texts than features.
    model = LogisticRegression(C=10.0, solver="liblinear", dual=True, max_iter=1000, random_state=_SEED)
    told = cross_val_predict(model, normalize(counts), labels, cv=folds, method="decision_function")
    return round(float(roc_auc_score(labels, told)), 3)
