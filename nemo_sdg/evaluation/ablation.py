"""What three sets of rows made of the same start: means, and differences with intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from nemo_sdg.config import Evaluate

ARMS = ("selected", "random", "unfiltered")
FILE = "ablation.json"
"""What round 0 leaves."""
LEVEL = 0.95

Interval = dict[str, Optional[float]]


def finished(settings: Evaluate, told: Mapping[str, Any] | None) -> bool:
    """Whether what the settings ask for is there, in as many seeds."""
    return not settings.ablation or (told is not None and told["seeds"] >= settings.ablation_seeds)


def compared(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The arms and what selection is worth.

    Args:
        values: the measure of each arm by seed, in the same order of the seeds.
    Returns:
        {"arms": {arm: interval}, "differences": {other arm: interval of selected - other, seed by seed}}.
    """
    selected = np.asarray(values[ARMS[0]])
    others = {arm: interval(selected - np.asarray(values[arm])) for arm in ARMS[1:]}
    return {"arms": {arm: interval(values[arm]) for arm in ARMS}, "differences": others}


def interval(values: Sequence[float]) -> Interval:
    """{"mean", "low", "high"}: Student's t interval of the mean, 95 %; no interval of one value."""
    from scipy import stats  # seconds, which no verb should wait that only looks whether something is there

    found = np.asarray(values, dtype=float)
    mean = float(found.mean())
    if len(found) < 2:
        return {"mean": mean, "low": None, "high": None}
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
    return {"mean": mean, "low": mean - reach, "high": mean + reach}
