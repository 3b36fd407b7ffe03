"""How well predicted attributes agree with what people said: errors, correlations, and how well scores can be read as marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nemo_sdg.config import ATTRIBUTES, MISSING
from nemo_sdg.evaluation import calibration
from nemo_sdg.training.correlation import pearson, spearman


def agreement(
    predicted: Sequence[Mapping[str, float]],
    true: Sequence[Mapping[str, float]],
    conversations: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Agreement per attribute over rows in the same order; a value of -100 on either side, or no true one, is left out.

    Args:
        conversations: a name (`records.hash_of`) for what each row answers; None calibrates nothing.
    Returns:
        {attribute: {"pearson", "spearman", "mae", "mse", "n"}} for the five HelpSteer attributes and each other label of
        `true`; errors in marks. With `conversations` also "calibrated_mae" and "calibrated_mse", the errors of calibrated
        scores on rows whose prompts the calibration did not see (None where there are too few prompts), and "knots",
        [[score, mark], ...] of the map fitted on all rows. See `calibration`.
    """
    if len(predicted) != len(true) or (conversations is not None and len(conversations) != len(true)):
        raise ValueError(f"as many predictions as rows are needed, found {len(predicted)} and {len(true)}")
    result: dict[str, dict[str, Any]] = {}
    own = dict.fromkeys(name for row in true for name in row if name not in ATTRIBUTES)
    for name in (*ATTRIBUTES, *own):
        both = [(p.get(name, MISSING), t.get(name, MISSING)) for p, t in zip(predicted, true)]
        known = [i for i, pair in enumerate(both) if MISSING not in pair]
        x, y = [both[i][0] for i in known], [both[i][1] for i in known]
        mae, mse = _errors(x, y)
        result[name] = {"pearson": pearson(x, y), "spearman": spearman(x, y), "mae": mae, "mse": mse, "n": len(known)}
        if conversations is not None:
            folds = [calibration.fold_of(conversations[i]) for i in known]
            read = calibration.cross_fitted(x, y, folds)
            mae, mse = (None, None) if read is None else _errors(read, y)
            result[name] |= {"calibrated_mae": mae, "calibrated_mse": mse, "knots": calibration.fit(x, y)}
    return result


def _errors(x: Sequence[float], y: Sequence[float]) -> tuple[float | None, float | None]:
    """(mean absolute, mean squared) error; None over no rows."""
    if not len(x):
        return None, None
    away = np.subtract(x, y)
    return float(np.mean(np.abs(away))), float(np.mean(away * away))
