"""Preference rows as samples of a reward model: both answers to a prompt in one sample, the better one first.

A pair is one sample, so rows may be shuffled and micro batches be of any size; NVIDIA/NeMo-Aligner takes adjacent rows
as a pair and needs files in order and a micro batch of 2 (docs/user-guide/steerlm2.rst, `scaled_bt`).
"""

from __future__ import annotations

from typing import Any

import torch

from nemo_sdg.errors import RowError
from nemo_sdg.models import templates
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.records import Pair
from nemo_sdg.records.fields import number
from nemo_sdg.training.samples import Sample

_REWARDS = {"chosen_reward": 1.0, "rejected_reward": 0.0}
"""What NVIDIA/NeMo-Aligner takes where a row has no rewards (`model.data.default_chosen_reward`)."""


def pair_sample(row: dict[str, Any], tokenizer: Tokenizer, *, weighed: bool, split: str = "train") -> Sample:
    """A pair as its two reward prompts, and by how much the first one is better.

    The strength is the gap between the rewards of NeMo-Aligner's rows (`prompt, chosen_response, rejected_response`
    and their rewards) and of TRL's (`chosen, rejected`), and |preference_strength| of HelpSteer2's preference subset.

    Args:
        weighed: the loss uses the strength, which must then be above 0.
        split: rows that say they are of another split are not used.
    Raises:
        RowError: no pair of one of these shapes, a tie, or a strength that cannot weigh.
    """
    if "chosen_response" in row:
        chosen, rejected, strength = _of_aligner(row)
    else:
        chosen, rejected, strength = _of_people(row, split)
    if chosen == rejected:
        raise RowError("both answers are the same")
    if weighed and strength <= 0:
        raise RowError("the rewards do not say that the chosen answer is better", found=strength)
    texts = tuple(torch.tensor(tokenizer.encode(text)) for text in (chosen, rejected))
    return Sample(texts, targets=torch.tensor([strength], dtype=torch.float64))


def _of_aligner(row: dict[str, Any]) -> tuple[str, str, float]:
    chosen, rejected = (
        templates.as_reward_prompt(row.get("prompt"), row.get(key)) for key in ("chosen_response", "rejected_response")
    )
    better, worse = (number(row.get(key, default), key, "row") for key, default in _REWARDS.items())
    return chosen, rejected, better - worse


def _of_people(row: dict[str, Any], split: str) -> tuple[str, str, float]:
    pair = Pair.from_row(row)
    if pair.extra.get("split", split) != split:
        raise RowError(f"not of its file's {split} split")
    if pair.margin == 0:
        raise RowError("a tie")
    messages = list(pair.messages)
    chosen, rejected = (
        templates.reward_prompt([*messages, {"role": "assistant", "content": answer}])
        for answer in (pair.chosen, pair.rejected)
    )
    return chosen, rejected, pair.margin
