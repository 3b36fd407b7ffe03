"""What validation says of each kind of fit: what it reads of a sample, and what it makes of all of them.

Axes: B rows, S tokens, V vocabulary (`_local`: this tensor-parallel rank's), N sequences, M samples, A reward outputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from nemo_sdg.config import Preference
from nemo_sdg.models.shapes import NUM_REWARD_OUTPUTS
from nemo_sdg.training.correlation import pearson, spearman
from nemo_sdg.training.losses import MISSING, attribute_regression, bradley_terry
from nemo_sdg.training.objectives import label_log_probs
from nemo_sdg.training.preference import pair_losses, response_log_probs
from nemo_sdg.training.samples import Sample


Curve = list[dict[str, Any]]
"""What each validation has told, {"step", "loss", ...}; the step counts those that are done."""


@dataclass(frozen=True)
class Measure:
    """How a fit is validated."""

    values: Callable[[dict[str, Any], Tensor], Tensor]
    """(batch of `batches.collate`, what the last stage computed) -> numbers of each sample, [M, width]."""
    width: int
    tell: Callable[[Sequence[Sample], Tensor], dict[str, Any]]
    """(samples, their numbers, float64 [M, width]) -> what is told, JSON; `loss` is that of the fit's objective."""


def tokens() -> Measure:
    """Mean negative log-probability of the trained tokens, in nats."""
    return Measure(_token_sums, 2, lambda samples, values_M2: {"loss": (values_M2[:, 0].sum() / values_M2[:, 1].sum()).item()})


def _token_sums(batch: dict[str, Any], logits_BSV_local: Tensor) -> Tensor:
    """Of each sample the negative log-probability of its trained tokens, and how many there are."""
    trained_BS = batch["labels"] >= 0
    nll_BS = -label_log_probs(batch, logits_BSV_local).double()
    sums_N2 = torch.zeros(len(batch["last"]), 2, dtype=torch.float64, device=nll_BS.device)
    real_BS = batch["sequence_ids"] >= 0
    terms = torch.stack((nll_BS, trained_BS.double()), dim=-1)[real_BS]
    return sums_N2.index_add_(0, batch["sequence_ids"][real_BS], terms)


def labels(outputs: Mapping[str, int], compare: str) -> Measure:
    """Squared error, and for each labelled output its error, Pearson and rank correlation with the labels.

    Args:
        compare: of two responses to one prompt, the reward that should be higher where this label is.
    """
    return Measure(lambda batch, rewards_NA: rewards_NA, NUM_REWARD_OUTPUTS, partial(_tell_labels, outputs, outputs[compare]))


def _tell_labels(outputs: Mapping[str, int], slot: int, samples: Sequence[Sample], rewards_MA: Tensor) -> dict[str, Any]:
    labels_MA = torch.stack([sample.targets for sample in samples])
    attributes = {}
    for name, output in outputs.items():
        labelled_M = labels_MA[:, output] != MISSING
        x, y = rewards_MA[labelled_M, output], labels_MA[labelled_M, output]
        if len(x):
            correlations = {"pearson": pearson(x.tolist(), y.tolist()), "spearman": spearman(x.tolist(), y.tolist())}
            attributes[name] = {"error": (x - y).square().mean().item(), **correlations, "n": len(x)}
    told = {"loss": attribute_regression(rewards_MA, labels_MA).item(), "attributes": attributes}
    right = [(a > b) == (true_a > true_b) and a != b for a, b, true_a, true_b in _compared(samples, rewards_MA, slot)]
    return {**told, "pair_accuracy": sum(right) / len(right) if right else None, "pairs": len(right)}


def _compared(samples: Sequence[Sample], rewards_MA: Tensor, slot: int) -> list[tuple[float, float, float, float]]:
    """(reward, the other's, label, the other's) of each two responses to one prompt with different labels."""
    of_prompt = defaultdict(list)
    for sample, reward in zip(samples, rewards_MA[:, slot].tolist()):
        label = sample.targets[slot].item()
        if label != MISSING:
            of_prompt[sample.prompt].append((reward, label))
    two = (pair for same in of_prompt.values() for pair in combinations(same, 2))
    return [(a, b, true_a, true_b) for (a, true_a), (b, true_b) in two if true_a != true_b]


def pairs(kind: str, output: int) -> Measure:
    """The Bradley-Terry loss of pairs, and how often the chosen response has the higher reward."""
    return Measure(lambda batch, rewards_NA: rewards_NA[:, output].view(-1, 2), 2, partial(_tell_pairs, kind))


def _tell_pairs(kind: str, samples: Sequence[Sample], rewards_M2: Tensor) -> dict[str, Any]:
    chosen_M, rejected_M = rewards_M2.unbind(1)
    strength_M = torch.stack([sample.targets[0] for sample in samples])
    right = (chosen_M > rejected_M).double().mean().item()  # a tie is no success, as in RewardBench
    loss = bradley_terry(chosen_M, rejected_M, strength_M, kind).item()
    return {"loss": loss, "pair_accuracy": right, "pairs": len(samples)}


def preferences(settings: Preference) -> Measure:
    """The loss of preference tuning, and how often the policy has moved towards the chosen response of the two."""

    def tell(samples: Sequence[Sample], policy_M2: Tensor) -> dict[str, Any]:
        losses_M, gap_M = pair_losses(settings, policy_M2, torch.stack([sample.targets for sample in samples]))
        right = (gap_M > 0).double().mean().item()
        return {"loss": losses_M.mean().item(), "pair_accuracy": right, "pairs": len(samples)}

    return Measure(response_log_probs, 2, tell)


def best_step(curve: Curve) -> int | None:
    """The step with the lowest validation loss, of equal ones the first; None before any validation."""
    return min(curve, key=lambda told: told["loss"])["step"] if curve else None


def in_words(told: dict[str, Any]) -> str:
    """One line for the console: `loss 0.412, helpfulness Pearson 0.83, 92.1 % of 310 pairs`."""
    parts = [f"loss {told['loss']:.3f}"]
    for name, found in told.get("attributes", {}).items():
        if found["pearson"] is not None:
            parts.append(f"{name} Pearson {found['pearson']:.2f}")
    if told.get("pair_accuracy") is not None:
        parts.append(f"{100 * told['pair_accuracy']:.1f} % of {told['pairs']} pairs")
    return ", ".join(parts)
