"""How often one policy's answer is better than another's by a reward model, and what is left of it at equal length.

A reward model may like long answers. Of "Length-Controlled AlpacaEval" (Dubois et al. 2024, arXiv 2404.04475) this takes
the logistic model with the length term, logit P(win) = theta + phi * tanh(d / s), where d is the difference of the lengths
in characters and s its standard deviation over the prompts; the controlled win rate is what it says at d = 0. It leaves
out the difficulty of each prompt, which takes many models to estimate, and learns from wins, ties and losses in place of
a judge's probabilities. Where both say the same the lengths are equal and it is a tie, so the controlled rate of policies
that often do is near one half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from nemo_sdg.evaluation.intervals import wilson

RESAMPLES = 1000
"""Of the prompts, for the interval of the controlled win rate."""
SEED = 0
"""Of the resampling, always the same, so that the same answers give the same interval."""
PENALTY = 0.01
"""Of theta^2 / 2 and phi^2 / 2: a normal prior of deviation 10, which ends where one policy wins everywhere."""
_AT_ONCE = 1 << 22
"""Numbers of a resampled table in memory at once."""


@dataclass(frozen=True)
class Said:
    """One answer, as far as it is compared."""

    scalar: float
    """Its weighted score."""
    characters: int
    text: str
    """A name of the text (`records.hash_of`): the same text is a tie, whatever the last digit of its score."""


def win_rate(ours: Sequence[Said | None], theirs: Sequence[Said | None]) -> dict[str, Any]:
    """Our policy against another one, prompt by prompt; None stands for no answer, or one that has no score.

    An answer wins against none. Prompts where both have none are counted as faulty and left out.

    Returns:
        {"wins", "ties", "losses", "n", "faulty", "win_rate": 0 to 1 with ties counted half, "low", "high": its Wilson
        interval of 95 %, "controlled": {"win_rate", "low", "high": the 2.5th and 97.5th percentile of RESAMPLES bootstrap
        samples of the prompts}}. Rates and bounds are None where n is 0.
    """
    both = [(a, b) for a, b in zip(ours, theirs) if a is not None or b is not None]
    won = np.array([_won(a, b) for a, b in both])
    longer = np.array([(a.characters if a else 0) - (b.characters if b else 0) for a, b in both], dtype=np.float64)
    n = len(both)
    low, high = wilson(float(won.sum()), n)
    return {
        "wins": int((won == 1).sum()), "ties": int((won == 0.5).sum()), "losses": int((won == 0).sum()), "n": n,
        "faulty": len(ours) - n, "win_rate": float(won.mean()) if n else None, "low": low, "high": high,
        "controlled": _controlled(won, longer),
    }  # fmt: skip


def _won(a: Said | None, b: Said | None) -> float:
    if a is None or b is None:
        return float(b is None)
    if a.text == b.text or a.scalar == b.scalar:
        return 0.5
    return float(a.scalar > b.scalar)


def _controlled(won: np.ndarray, longer: np.ndarray) -> dict[str, float | None]:
    n = len(won)
    if n == 0:
        return {"win_rate": None, "low": None, "high": None}
    one_sided = won.min() == won.max()  # no resample of them differs, which is no certainty
    spread = longer.std()
    length = np.tanh(longer / spread) if spread > 0 else np.zeros(n)
    found = expit(_theta(won, length, np.ones((1, n))))[0]
    chance, drawn = np.random.default_rng(SEED), []
    each = max(1, _AT_ONCE // n)
    for done in range(0, RESAMPLES, each):
        counts = chance.multinomial(n, np.full(n, 1 / n), size=min(each, RESAMPLES - done)).astype(np.float64)
        drawn.append(expit(_theta(won, length, counts)))
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    interval = {"low": None, "high": None} if one_sided else {"low": float(low), "high": float(high)}
    return {"win_rate": float(found), **interval}


def _theta(won_N: np.ndarray, length_N: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
    """theta of each of R samples, by Newton's method with halved steps; N prompts, each as often as a sample has it."""

    def loss(b_R2: np.ndarray) -> np.ndarray:
        logit_RN = b_R2[:, :1] + b_R2[:, 1:] * length_N
        return (counts_RN * (np.logaddexp(0, logit_RN) - won_N * logit_RN)).sum(1) + PENALTY / 2 * (b_R2**2).sum(1)

    b_R2 = np.zeros((len(counts_RN), 2))
    now_R = loss(b_R2)
    for _ in range(100):
        p_RN = expit(b_R2[:, :1] + b_R2[:, 1:] * length_N)
        off_RN, bend_RN = counts_RN * (p_RN - won_N), counts_RN * p_RN * (1 - p_RN)
        g0, g1 = off_RN.sum(1) + PENALTY * b_R2[:, 0], off_RN @ length_N + PENALTY * b_R2[:, 1]
        h00, h01, h11 = bend_RN.sum(1) + PENALTY, bend_RN @ length_N, bend_RN @ length_N**2 + PENALTY
        det = h00 * h11 - h01 * h01
        step_R2 = np.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0], axis=1) / det[:, None]
        size_R = np.ones(len(b_R2))
        for _ in range(40):
            next_R2 = b_R2 - size_R[:, None] * step_R2
            next_R = loss(next_R2)
            worse = next_R > now_R + 1e-9
            if not worse.any():
                break
            size_R[worse] /= 2
        b_R2, now_R = next_R2, next_R
        if np.abs(step_R2).max() < 1e-9:
            break
    return b_R2[:, 0]
