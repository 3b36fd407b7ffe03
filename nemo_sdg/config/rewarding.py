"""Settings of how a reward model is trained: what its outputs are called, and what they learn from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict

from nemo_sdg.config.selection import ATTRIBUTES, OUTPUTS
from nemo_sdg.config.training import Training

OBJECTIVES = ("regression", "bradley_terry", "bradley_terry_margin", "bradley_terry_scaled")
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""What a label may be called."""


@dataclass(kw_only=True)
class RewardTraining(Training):
    objective: str = "regression"
    """What it learns: regression (each output gives the label of its name), or which of two responses is better, by
    bradley_terry, bradley_terry_margin (rewards are to differ by the strength) or bradley_terry_scaled (the loss is
    multiplied by it)."""
    outputs: Dict[str, int] = field(default_factory=lambda: dict(OUTPUTS))
    """The names of the outputs that are trained, 0 to 8. A name beside the five attributes is a label of the user's own: a
    column of `data.labelled`, then a score of that name."""
    compare: str = "helpfulness"
    """The output whose rewards are compared where pairs are learned from."""
    keep_head: bool = True
    """Go on with the head of the reward model that is started from; false begins with a fresh one."""

    @property
    def own(self) -> tuple[str, ...]:
        """The labels of the user's own: outputs with another name than the five attributes."""
        return tuple(name for name in self.outputs if name not in ATTRIBUTES)

    @property
    def trained(self) -> dict[str, int]:
        """The outputs that its rows teach, by name."""
        return {self.compare: self.outputs[self.compare]} if self.pairs else self.outputs

    @property
    def pairs(self) -> bool:
        """It learns from pairs, not from labels."""
        return self.objective != "regression"

    @property
    def rows(self) -> str:
        """The dataset that it learns from."""
        return "preference" if self.pairs else "reward"
