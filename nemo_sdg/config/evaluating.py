"""Settings of the evaluations: on which rows, and by which rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Optional

from nemo_sdg.config.selection import ATTRIBUTES
from nemo_sdg.errors import ConfigError

FILES = ("exact_match", "helpsteer2", "rewardbench", "instructions", "win_rate")
"""The settings that name files of held-out rows."""


@dataclass(kw_only=True)
class Evaluate:
    exact_match: Optional[str] = None
    """Held-out prompts with their right answers: {"id", "prompt", "answer"} rows."""
    helpsteer2: Optional[str] = None
    """Held-out rows in HelpSteer2's schema: agreement of the reward model with people, and its drift between rounds."""
    rewardbench: Optional[str] = None
    """Pairs in RewardBench's schema (v1: prompt, chosen, rejected, subset), the split `filtered` of the public set: how
    often the reward model prefers the chosen one."""
    instructions: Optional[str] = None
    """Held-out prompts with verifiable instructions: rows with a column `checks`, as data.checks takes it, of which the
    checks with a `spec` count."""
    win_rate: Optional[str] = None
    """Held-out prompts on which the policy is compared with the one that the run started from; the reward model that the
    run started from says who wins, in every round the same."""
    weights: Dict[str, float] = field(default_factory=lambda: dict(zip(ATTRIBUTES, (0.3, 0.74, 0.46, 0.47, -0.33))))
    """Weights of the scalar by which RewardBench and win rate compare two responses. Those of the published figures of
    Nemotron-4-340B-Reward (its model card; HelpSteer2, arXiv 2406.08673, appendix H), which were searched for on
    RewardBench itself; helpfulness alone is 'evaluate.weights={helpfulness: 1}'."""
    drift_shift: float = 0.5
    """An attribute has drifted when the mean of its scores on the rows of `helpsteer2` lies further than so many standard
    deviations from the mean of the first reward model's; the deviation is that one's."""
    drift_ks: float = 0.3
    """It has drifted, too, when the Kolmogorov-Smirnov distance of the two distributions is above this."""
    drift_outside: float = 0.05
    """It has drifted, too, when more than this share of the scores lie outside the range of the first reward model's."""
    max_tokens: int = 512
    """Tokens per held-out answer at most (greedy)."""
    gate_policy: Optional[str] = None
    """What a new policy must be better in than the one that the round began with; otherwise that one stays: exact_match,
    instructions (prompts of which every instruction is followed, strict) or win_rate; null lets every policy go on."""
    gate_reward: Optional[str] = None
    """The same of a reward model: agreement (mean rank correlation with the labels of `helpsteer2` over its attributes)
    or rewardbench (overall, or of the sections that there are); null lets every reward model go on."""
    gate_margin: float = 0.0
    """A new model goes on where it is better by more than this; all measures lie between 0 and 1."""
    ablation: bool = False
    """After round 0, train three policies on as many steps of its selected rows, of as many random candidates, and of all
    candidates, and tell by `exact_match` (or `instructions`) what the selection was worth."""
    ablation_seeds: int = 3
    """Times that each of the three is trained; the intervals are over them."""

    @property
    def files(self) -> dict[str, str]:
        """The files of held-out rows that are set, by setting."""
        return {name: path for name in FILES if (path := getattr(self, name)) is not None}


GATES = {
    "gate_policy": {"exact_match": "exact_match", "instructions": "instructions", "win_rate": "win_rate"},
    "gate_reward": {"agreement": "helpsteer2", "rewardbench": "rewardbench"},
}
"""By setting, the measures that decide, each with the setting that names its rows."""


def check_evaluate(settings: Evaluate, trains_sft: bool) -> None:
    """Raises ConfigError where something is decided by a measure that nobody takes."""
    for key, measures in GATES.items():
        measure = getattr(settings, key)
        if measure is not None and getattr(settings, measures[measure]) is None:
            raise ConfigError(
                "there are no rows to decide by", where=f"evaluate.{key}", found=f"{measure} without evaluate.{measures[measure]}",
                expected="the measure of a file that is set", way_out=f"set evaluate.{measures[measure]} to a file",
            )  # fmt: skip
    if settings.ablation and settings.exact_match is None and settings.instructions is None:
        raise ConfigError(
            "there are no rows to hold the three policies against", where="evaluate.ablation", found="true",
            expected="evaluate.exact_match or evaluate.instructions", way_out="set evaluate.exact_match to a file",
        )  # fmt: skip
    if settings.ablation and not trains_sft:
        raise ConfigError(
            "the policies of an ablation are trained by SFT", where="evaluate.ablation", found="true with sft.enabled=false",
            expected="sft.enabled=true", way_out="set sft.enabled=true, or leave evaluate.ablation out",
        )  # fmt: skip


_ABOVE_0 = ("a number above 0", lambda x: x > 0)
RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "evaluate.max_tokens": ("a whole number of at least 1", lambda x: x >= 1),
    "evaluate.drift_shift": _ABOVE_0,
    "evaluate.drift_ks": _ABOVE_0,
    "evaluate.drift_outside": _ABOVE_0,
    "evaluate.gate_margin": ("a number from 0 up to, not including, 1", lambda x: 0 <= x < 1),
    "evaluate.ablation_seeds": ("a whole number of at least 1", lambda x: x >= 1),
    **{
        f"evaluate.{key}": (f"one of {', '.join(measures)}", lambda x, known=tuple(measures): x in known)
        for key, measures in GATES.items()
    },
}
