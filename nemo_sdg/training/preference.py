"""Preference tuning: pairs of responses as samples, and the DPO or RPO loss of a micro batch of them.

Axes: M pairs, N sequences (two of each pair, the chosen one first), B rows, S tokens, V vocabulary (`_local`: this
tensor-parallel rank's).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemo_sdg.config import Preference
from nemo_sdg.errors import RowError
from nemo_sdg.models.templates import TURN
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.training.losses import dpo_rows, rpo_rows
from nemo_sdg.training.objectives import SumAndCount, label_log_probs
from nemo_sdg.training.samples import Sample, is_finite

END = f"\n{TURN}"
"""How a response ends, so that the policy also learns where to stop."""


def preference_sample(row: dict[str, Any], tokenizer: Tokenizer) -> Sample:
    """A row of NeMo-Aligner's preference format as two sequences, of which the responses alone are labelled.

    Its targets are the rewards of the chosen and of the rejected response; `reference.with_reference` adds the
    reference's log-probabilities.
    Source: NVIDIA/NeMo-Aligner: docs/user-guide/dpo.rst.
    Raises:
        RowError: a text or a reward is missing, a response does not end its turn, both are the same, or a response
            changes how the end of the prompt is cut into tokens.
    """
    prompt, *responses = (_text(row, name) for name in ("prompt", "chosen_response", "rejected_response"))
    rewards = [row.get(name) for name in ("chosen_reward", "rejected_reward")]
    if not all(map(is_finite, rewards)):
        raise RowError("a reward is not a finite number", found=repr(rewards)[:80])
    if responses[0] == responses[1]:
        raise RowError("both responses are the same")
    before = tokenizer.encode(prompt)
    sequences, labels = [], []
    for response in responses:
        ids = tokenizer.encode(prompt + response)
        if ids[: len(before)] != before:
            raise RowError("the prompt and the response share a token", found=repr(response[:20]))
        sequences.append(torch.tensor(ids[:-1]))
        labels.append(torch.tensor([-1] * (len(before) - 1) + ids[len(before) :]))
    return Sample(tuple(sequences), labels=tuple(labels), targets=torch.tensor(rewards, dtype=torch.float64))


def _text(row: dict[str, Any], name: str) -> str:
    text = row.get(name)
    if not isinstance(text, str) or not text:
        raise RowError(f"the row has no {name}", found=type(text).__name__)
    if name != "prompt" and not text.endswith(END):
        raise RowError(f"the {name} does not end its turn", found=repr(text[-20:]), expected=repr(END))
    return text


def response_log_probs(batch: dict[str, Any], logits_BSV_local: Tensor) -> Tensor:
    """Log-probability of each pair's responses under the policy, summed over tokens, in nats: fp64 [M, 2].

    Summed by splitting rows, not by adding into an index, whose order on a GPU changes from run to run; and in double,
    since a difference of a few nats is wanted of sums of thousands.
    """
    log_probs_BS = label_log_probs(batch, logits_BSV_local).double()
    rows = zip(log_probs_BS, batch["sizes"])
    return torch.stack([one.sum() for row_S, sizes in rows for one in row_S[: sum(sizes)].split(sizes)]).view(-1, 2)


def preference_loss(settings: Preference) -> SumAndCount:
    """DPO's or RPO's loss with NeMo-Aligner's SFT term; targets are pairs.

    A pair's loss is that of `losses.dpo` or `losses.rpo`, less `sft_weight` times the log-probability of the chosen
    response. Source: NVIDIA/NeMo-Aligner: nemo_aligner/models/nlp/gpt/megatron_gpt_dpo_model.py (`sft_loss_weight`).
    """

    def loss(batch: dict[str, Any], logits_BSV_local: Tensor) -> tuple[Tensor, Tensor]:
        losses_M, _ = pair_losses(settings, response_log_probs(batch, logits_BSV_local), batch["targets"])
        return losses_M.sum(), torch.tensor(len(losses_M), device=losses_M.device)

    return loss


def pair_losses(settings: Preference, policy_M2: Tensor, targets_M4: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each pair [M], and by how much further the policy holds its responses apart than the reference, in nats."""
    rewards_M2, reference_M2 = targets_M4.split(2, dim=-1)
    chosen_M, rejected_M = (policy_M2 - reference_M2).unbind(-1)
    gap_M = chosen_M - rejected_M
    if settings.objective == "dpo":
        each_M = dpo_rows(gap_M, settings.beta)
    else:
        each_M = rpo_rows(gap_M, rewards_M2[:, 0] - rewards_M2[:, 1], settings.beta, settings.eta)
    return each_M - settings.sft_weight * policy_M2[:, 0], gap_M
