"""Settings of how a reward model is trained: what its outputs are called, and what they learn from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict

from nemo_sdg.config.selection import NUM_REWARD_OUTPUTS, OUTPUTS
from nemo_sdg.config.training import Training
from nemo_sdg.errors import ConfigError

OBJECTIVES = ("regression", "bradley_terry", "bradley_terry_margin", "bradley_terry_scaled")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


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
    def pairs(self) -> bool:
        """It learns from pairs, not from labels."""
        return self.objective != "regression"

    @property
    def rows(self) -> str:
        """The dataset that it learns from."""
        return "preference" if self.pairs else "reward"


def check_reward(settings: RewardTraining) -> None:
    """Raises ConfigError unless each name has an output of its own, and what is compared is one of them."""
    taken: dict[int, str] = {}
    for name, slot in settings.outputs.items():
        where = f"reward.outputs.{name}"
        if not _NAME.fullmatch(name):
            raise ConfigError("the name cannot be a label's", where=where, found=name, expected="a-z, 0-9 and _, 64 at most")
        if slot not in range(NUM_REWARD_OUTPUTS):
            raise ConfigError("the reward model has no such output", where=where, found=slot, expected="0 to 8")
        if slot in taken:
            raise ConfigError("two names share an output", where=where, found=f"{slot}, as {taken[slot]}",
                              expected="one that is free")  # fmt: skip
        taken[slot] = name
    if not settings.outputs:
        raise ConfigError("no output would be trained", where="reward.outputs", expected="at least one name")
    if settings.compare not in settings.outputs:
        raise ConfigError(
            "what is compared is no output of the reward model", where="reward.compare", found=settings.compare,
            expected="one of " + ", ".join(settings.outputs), way_out="name it in reward.outputs",
        )  # fmt: skip
