"""Settings of how a reward model is trained: what its outputs are called, and what they learn from."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_sdg.config.training import Training


@dataclass(kw_only=True)
class RewardTraining(Training):
    objective: str = "regression"
    """What it learns: regression (its outputs are the labels of single responses), or which of two responses is better, by
    bradley_terry, bradley_terry_margin (the rewards differ by the strength) or bradley_terry_scaled (the loss times it)."""
