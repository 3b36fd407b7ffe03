"""Settings of the evaluations: on which rows, and by which rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Optional

from nemo_sdg.config.selection import ATTRIBUTES

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

    @property
    def files(self) -> dict[str, str]:
        """The files of held-out rows that are set, by setting."""
        return {name: path for name in FILES if (path := getattr(self, name)) is not None}


_ABOVE_0 = ("a number above 0", lambda x: x > 0)
RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "evaluate.max_tokens": ("a whole number of at least 1", lambda x: x >= 1),
    "evaluate.drift_shift": _ABOVE_0,
    "evaluate.drift_ks": _ABOVE_0,
    "evaluate.drift_outside": _ABOVE_0,
}
