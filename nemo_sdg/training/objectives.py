"""The losses of a micro batch: sums over its targets, and how many of them there are.

A step divides the sum of all micro batches of all replicas by the number of all their targets. Means of means would
weigh a token by how few others share its micro batch or its replica.
Axes: B rows, S tokens, V vocabulary (`_local`: this tensor-parallel rank's), N sequences, A reward outputs.
"""

from __future__ import annotations

from typing import Any, Callable

from megatron.core import parallel_state
from torch import Tensor

from nemo_sdg.training.losses import regression_sum, vocab_parallel_log_probs

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
    return regression_sum(rewards_NA, batch["targets"])
