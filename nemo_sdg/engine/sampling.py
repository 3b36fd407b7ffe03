"""From vocabulary-parallel logits to token ids, with one number of the row's own stream per token.

The whole vocabulary is never gathered for greedy choice, plain temperature, min-p and top-k: shards exchange a few numbers
per row. Top-p exchanges candidates, as many as it takes. Equal logits and numbers give equal tokens at any TP.

Axes: R rows, V vocabulary (`_local`: this shard's), C candidates, X shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_sdg.engine.requests import Sampling

__all__ = ["Choice", "Sampling", "Shard", "choose"]

_CANDIDATES = 256
"""Candidates per shard that top-p begins with; nearly always enough."""


@dataclass(frozen=True)
class Shard:
    """Which part of the vocabulary this rank holds."""

    first: int = 0
    """The token of its first logit."""
    padding: int = 0
    """Logits at its end that belong to no token: they are -inf."""
    count: int = 1
    """Shards; all have equally many logits."""
    group: Any = None
    """The tensor-parallel group; None with one shard."""

    def gather(self, values_RX: Tensor) -> Tensor:
        """The values of all shards side by side along the last axis."""
        if self.count == 1:
            return values_RX
        parts = [torch.empty_like(values_RX) for _ in range(self.count)]
        dist.all_gather(parts, values_RX.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)

    def mine(self, token_R: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Place of each token in this shard, and whether it stands here at all."""
        local_R = token_R - self.first
        here_R = (local_R >= 0) & (local_R < size)
        return local_R.clamp(0, size - 1), here_R


@dataclass(frozen=True)
class Choice:
    """What one row is chosen by."""

    sampling: Sampling
    uniform: float
    """In [0, 1)."""
    stop_ids: Sequence[int] = ()
    """Tokens that may not come yet."""
    seen: np.ndarray | None = None
    """Tokens that stand in the prompt or the response already; needed only with a repetition penalty."""


def choose(logits_RV_local: Tensor, choices: Sequence[Choice], shard: Shard = Shard()) -> tuple[Tensor, Tensor]:
    """Token ids [R], -1 where the logits were not finite, and natural log-probabilities [R] (float64).

    The log-probability is the model's own, of the logits as they come; 0 where nobody asked for it.
    """
    at = logits_RV_local.device
    finite_R = logits_RV_local[:, : logits_RV_local.size(1) - shard.padding].isfinite().all(dim=-1)
    if shard.count > 1:
        finite_R = finite_R.to(torch.uint8)
        dist.all_reduce(finite_R, op=dist.ReduceOp.MIN, group=shard.group)
        finite_R = finite_R.bool()
    wide_RV = logits_RV_local.double()
    if not bool(finite_R.all()):
        wide_RV = wide_RV.nan_to_num()
    settings = [choice.sampling for choice in choices]
    raw_RV = wide_RV
    wide_RV = _penalised(wide_RV, choices, shard)

    def column(values: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=at)[:, None]

    # A temperature of 0 takes the most probable token; 1 in its place keeps the division harmless.
    greedy_R = column([setting.temperature == 0 for setting in settings], torch.bool)[:, 0]
    token_R = _argmax(wide_RV, shard)
    if not all(setting.temperature == 0 for setting in settings):
        temperature_R1 = column([setting.temperature or 1.0 for setting in settings])
        uniform_R = column([choice.uniform for choice in choices])[:, 0]
        filtered = [bool(setting.temperature and (setting.top_k or setting.top_p < 1)) for setting in settings]
        scaled_RV = wide_RV / temperature_R1
        top_R1 = _maximum(scaled_RV, shard)
        weight_RV = (scaled_RV - top_R1).exp()
        if any(setting.min_p for setting in settings):
            weight_RV = weight_RV.masked_fill(weight_RV < column([setting.min_p for setting in settings]), 0.0)
        if all(filtered):
            sampled_R = _from_candidates(weight_RV, uniform_R, settings, shard)
        else:
            sampled_R = _invert_sharded(weight_RV, uniform_R, shard)
            if any(filtered):
                few_R = _from_candidates(weight_RV, uniform_R, settings, shard)
                sampled_R = torch.where(column(filtered, torch.bool)[:, 0], few_R, sampled_R)
        token_R = torch.where(greedy_R, token_R, sampled_R)
    log_prob_R = torch.zeros(len(choices), dtype=torch.float64, device=at)
    if any(setting.logprobs for setting in settings):
        log_prob_R = log_probs(raw_RV, token_R, shard)
    return torch.where(finite_R, token_R, -1), log_prob_R


def log_probs(logits_RV: Tensor, token_R: Tensor, shard: Shard) -> Tensor:
    """Natural log-probability of one token per row, float64 [R], from logits of this shard."""
    logits_RV = logits_RV.double()
    top_R1 = _maximum(logits_RV, shard)
    mass_R1 = shard.gather(_mass((logits_RV - top_R1).exp())).sum(dim=-1, keepdim=True)
    local_R, here_R = shard.mine(token_R, logits_RV.size(-1))
    own_R1 = logits_RV.gather(1, local_R[:, None]).masked_fill(~here_R[:, None], 0.0)
    return (shard.gather(own_R1).sum(dim=-1) - (top_R1 + mass_R1.log())[:, 0]).to(torch.float64)


def _penalised(logits_RV: Tensor, choices: Sequence[Choice], shard: Shard) -> Tensor:
    """Logits with repeated tokens made less likely, and with those that may not come at -inf."""
    size = logits_RV.size(1)

    def local(token_ids: np.ndarray) -> np.ndarray:
        token_ids = np.asarray(token_ids, dtype=np.int64) - shard.first
        return token_ids[(token_ids >= 0) & (token_ids < size)]

    penalised = [row for row, choice in enumerate(choices) if choice.sampling.repetition_penalty != 1]
    barred = [row for row, choice in enumerate(choices) if len(choice.stop_ids)]
    if penalised or barred:
        logits_RV = logits_RV.clone()
    for row in penalised:
        penalty, seen = choices[row].sampling.repetition_penalty, torch.from_numpy(local(choices[row].seen))
        value = logits_RV[row, seen.to(logits_RV.device)]
        logits_RV[row, seen.to(logits_RV.device)] = torch.where(value > 0, value / penalty, value * penalty)
    if barred:
        rows = np.repeat(barred, [len(choices[row].stop_ids) for row in barred])
        token_ids = np.concatenate([choices[row].stop_ids for row in barred]) - shard.first
        here = (token_ids >= 0) & (token_ids < size)
        places = (torch.from_numpy(values[here]).to(logits_RV.device) for values in (rows, token_ids))
        logits_RV.index_put_(tuple(places), logits_RV.new_tensor(-torch.inf))
    return logits_RV


def _mass(weight_RV: Tensor) -> Tensor:
    """The sum of each row [R, 1]. A single row would be cut up among the threads, and so rounded in another way."""
    alone = len(weight_RV) == 1
    return (weight_RV.expand(2, -1) if alone else weight_RV).sum(dim=-1, keepdim=True)[: len(weight_RV)]


def _maximum(values_RV: Tensor, shard: Shard) -> Tensor:
    return shard.gather(values_RV.amax(dim=-1, keepdim=True)).amax(dim=-1, keepdim=True)


def _argmax(logits_RV: Tensor, shard: Shard) -> Tensor:
    """The most probable token; of equals the first."""
    local_R1 = logits_RV.argmax(dim=-1, keepdim=True)
    if shard.count == 1:
        return local_R1[:, 0]
    best_RX = shard.gather(logits_RV.gather(1, local_R1))
    token_RX = shard.gather(local_R1 + shard.first)
    return token_RX.gather(1, best_RX.argmax(dim=-1, keepdim=True))[:, 0]


def _invert(weight_RC: Tensor, target_R1: Tensor) -> Tensor:
    """The first index at which the running sum exceeds the target; never one without weight."""
    running_RC = weight_RC.cumsum(dim=-1)
    index_R1 = torch.searchsorted(running_RC, target_R1, right=True)
    last_R1 = (weight_RC > 0).cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    return torch.minimum(index_R1, last_R1)[:, 0]


def _invert_sharded(weight_RV: Tensor, uniform_R: Tensor, shard: Shard) -> Tensor:
    """Inversion of the cumulative distribution over all shards: first which shard, then which of its tokens."""
    if shard.count == 1:
        return _invert(weight_RV, uniform_R[:, None] * weight_RV.cumsum(dim=-1)[:, -1:])
    sum_RX = shard.gather(weight_RV.cumsum(dim=-1)[:, -1:])
    upto_RX = sum_RX.cumsum(dim=-1)
    target_R1 = uniform_R[:, None] * upto_RX[:, -1:]
    owner_R1 = _invert(sum_RX, target_R1)[:, None]
    before_R1 = (upto_RX - sum_RX).gather(1, owner_R1)
    local_R = _invert(weight_RV, target_R1 - before_R1)
    token_RX = shard.gather((local_R + shard.first)[:, None])
    return token_RX.gather(1, owner_R1)[:, 0]


def _from_candidates(weight_RV: Tensor, uniform_R: Tensor, settings: Sequence[Sampling], shard: Shard) -> Tensor:
    """Top-k, then top-p, over the most probable tokens of each shard, best first."""
    at, whole = weight_RV.device, weight_RV.size(1)
    top_k_R1 = torch.tensor([setting.top_k or 1 << 62 for setting in settings], device=at)[:, None]
    top_p_R1 = torch.tensor([setting.top_p for setting in settings], dtype=torch.float64, device=at)[:, None]
    mass_R1 = shard.gather(_mass(weight_RV)).sum(dim=-1, keepdim=True)
    count = max(_CANDIDATES, *(setting.top_k for setting in settings))
    while True:
        value_RC, token_RC, hidden_R1 = _candidates(weight_RV, min(count, whole), shard)
        value_RC = value_RC.masked_fill(torch.arange(value_RC.size(1), device=at) >= top_k_R1, 0.0)
        counted_R1 = top_k_R1 <= count
        total_R1 = torch.where(counted_R1, value_RC.sum(dim=-1, keepdim=True), mass_R1)
        beyond_RC = (value_RC.cumsum(dim=-1) - value_RC >= top_p_R1 * total_R1) & (top_p_R1 < 1)
        kept_RC = value_RC.masked_fill(beyond_RC, 0.0)
        # A nucleus is complete if it ends among the candidates, above all that the shards have not shown.
        least_R1 = kept_RC.masked_fill(kept_RC == 0, torch.inf).amin(dim=-1, keepdim=True)
        complete_R1 = counted_R1 | (top_p_R1 >= 1) | (beyond_RC.any(dim=-1, keepdim=True) & (least_R1 >= hidden_R1))
        # All shards go on or none: on a GPU their running sums may differ in the last digit.
        if count >= whole or bool(shard.gather(complete_R1.all().to(torch.uint8).view(1, 1)).all()):
            index_R = _invert(kept_RC, uniform_R[:, None] * kept_RC.cumsum(dim=-1)[:, -1:])
            return token_RC.gather(1, index_R[:, None])[:, 0]
        count *= 8


def _candidates(weight_RV: Tensor, count: int, shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` most probable tokens of each shard, of all shards together best first [R, C], and the largest weight
    that a shard may not have shown [R, 1]."""
    if count == weight_RV.size(1):
        value_RC, local_RC = weight_RV.sort(dim=-1, descending=True, stable=True)
        hidden_R1 = torch.zeros_like(value_RC[:, :1])
    else:
        value_RC, local_RC = weight_RV.topk(count, dim=-1)
        hidden_R1 = shard.gather(value_RC[:, -1:]).amax(dim=-1, keepdim=True)
    value_RC, token_RC = shard.gather(value_RC), shard.gather(local_RC + shard.first)
    if shard.count > 1 or count < weight_RV.size(1):  # of equals the first token first, wherever it came from
        token_RC, order_RC = token_RC.sort(dim=-1)
        value_RC, again_RC = value_RC.gather(1, order_RC).sort(dim=-1, descending=True, stable=True)
        token_RC = token_RC.gather(1, again_RC)
    return value_RC, token_RC, hidden_R1
