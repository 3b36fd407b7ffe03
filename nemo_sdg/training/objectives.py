"""The losses of a micro batch: sums over its targets, and how many of them there are.

A step divides the sum of all micro batches of all replicas by the number of all their targets. Means of means would
weigh a token by how few others share its micro batch or its replica.
Axes: B rows, S tokens, V vocabulary (`_local`: this tensor-parallel rank's), N sequences, M samples, A
reward outputs.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from megatron.core import parallel_state
from torch import Tensor

from nemo_sdg.training.losses import bradley_terry_losses, regression_sum, vocab_parallel_log_probs

SumAndCount = Callable[[dict[str, Any], Tensor], tuple[Tensor, Tensor]]
"""(micro batch of `batches.collate`, what the last stage computed) -> sum of the loss, number of targets."""


def token_nll(batch: dict[str, Any], logits_BSV_local: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-probability of the trained tokens, in nats; targets are tokens."""
    return -label_log_probs(batch, logits_BSV_local).sum(), (batch["labels"] >= 0).sum()


def label_log_probs(batch: dict[str, Any], logits_BSV_local: Tensor) -> Tensor:
    """Log-probability [B, S] of the label at each position, in nats; 0 where there is none."""
    trained_BS = batch["labels"] >= 0
    target_BS = batch["labels"].clamp(min=0)
    group = parallel_state.get_tensor_model_parallel_group()
    return vocab_parallel_log_probs(logits_BSV_local, target_BS, group) * trained_BS


def regression(batch: dict[str, Any], rewards_NA: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of the labelled attributes; targets are labels."""
    return regression_sum(at_least_fp32(rewards_NA), batch["targets"])


def bradley_terry(kind: str, output: int) -> SumAndCount:
    """The loss of pairs by one output of the reward model; targets are pairs.

    Args:
        kind: regular, margin or scaled (`losses.bradley_terry`).
    """

    def sum_and_count(batch: dict[str, Any], rewards_NA: Tensor) -> tuple[Tensor, Tensor]:
        chosen_M, rejected_M = at_least_fp32(rewards_NA)[:, output].view(-1, 2).unbind(1)
        losses_M = bradley_terry_losses(chosen_M, rejected_M, batch["targets"][:, 0], kind)
        return losses_M.sum(), torch.tensor(len(losses_M), device=losses_M.device)

    return sum_and_count


def at_least_fp32(values: Tensor) -> Tensor:
    """Half precisions as fp32: a sum of errors needs more digits than a reward."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
