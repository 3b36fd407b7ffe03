"""From logits to token ids: temperature, top-k and top-p, with one number of the row's own stream per token.

Axes: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen and when a response ends."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    round: int = 0
    """Rounds of a run have streams of their own."""


def choose(logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> Tensor:
    """Token ids [B] by inversion of the cumulative distribution at `uniform_B` (float64 in [0, 1)).

    Equal logits and numbers give equal tokens on every rank, so no rank has to send its choice. Greedy at
    temperature 0. Top-p keeps the smallest set of most probable tokens whose mass reaches it (Holtzman et al.,
    arXiv 1904.09751); top-k is applied before it.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    logits_BV = logits_BV.double() / sampling.temperature
    if not sampling.top_k and sampling.top_p >= 1:
        return _invert(logits_BV.softmax(dim=-1), uniform_B)
    logits_BV, tokens_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        logits_BV, tokens_BV = logits_BV[:, : sampling.top_k], tokens_BV[:, : sampling.top_k]
    probabilities_BV = logits_BV.softmax(dim=-1)
    before_BV = probabilities_BV.cumsum(dim=-1) - probabilities_BV
    kept_BV = probabilities_BV.masked_fill(before_BV >= sampling.top_p, 0.0)
    return tokens_BV.gather(1, _invert(kept_BV, uniform_B)[:, None])[:, 0]


def _invert(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    cumulative_BV = weights_BV.cumsum(dim=-1)
    target_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    # The first index whose sum exceeds the target: a token without mass is never chosen.
    index_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True)
    last_B1 = (weights_BV > 0).cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    return torch.minimum(index_B1, last_B1)[:, 0]
