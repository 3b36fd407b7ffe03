"""How well predicted attributes agree with the true ones: Pearson, Spearman and mean absolute error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nemo_sdg.config import ATTRIBUTES, MISSING
from nemo_sdg.training.correlation import pearson, spearman


def agreement(
    predicted: Sequence[Mapping[str, float]], true: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, float | int | None]]:
    """Agreement per attribute over rows in the same order; a value of -100 on either side, or no true one, is left out.

    Returns:
        {attribute: {"pearson", "spearman", "mae", "n"}} for the five HelpSteer attributes and each other label of `true`.
    """
    if len(predicted) != len(true):
        raise ValueError(f"as many predictions as rows are needed, found {len(predicted)} and {len(true)}")
    result: dict[str, dict[str, float | int | None]] = {}
    own = dict.fromkeys(name for row in true for name in row if name not in ATTRIBUTES)
    for name in (*ATTRIBUTES, *own):
        both = [(p.get(name, MISSING), t.get(name, MISSING)) for p, t in zip(predicted, true)]
        pairs = [pair for pair in both if MISSING not in pair]
        x, y = [p for p, _ in pairs], [t for _, t in pairs]
        mae = float(np.mean(np.abs(np.subtract(x, y)))) if pairs else None
        result[name] = {"pearson": pearson(x, y), "spearman": spearman(x, y), "mae": mae, "n": len(pairs)}
    return result
