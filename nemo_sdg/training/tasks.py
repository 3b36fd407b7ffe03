"""What can be trained: for each kind of fit its rows, its head, and its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from nemo_sdg.config import RewardTraining, Training
from nemo_sdg.training import objectives, samples
from nemo_sdg.training.objectives import SumAndCount
from nemo_sdg.training.pairs import pair_sample


@dataclass(frozen=True)
class Task:
    """One kind of fit."""

    name: str
    """The group of settings it is trained with."""
    sample: samples.Make
    objective: SumAndCount
    reward: bool = False
    """It trains a reward model."""
    fresh_head: bool = False
    """A reward model does not go on with the head of the one that it starts from."""


def _sft(settings: Training) -> Task:
    return Task("sft", samples.sft_sample, objectives.token_nll)


def _reward(settings: RewardTraining) -> Task:
    head = {"reward": True, "fresh_head": not settings.keep_head}
    if not settings.pairs:
        return Task("reward", samples.reward_sample, objectives.regression, **head)
    kind = settings.objective.removeprefix("bradley_terry").removeprefix("_") or "regular"
    objective = objectives.bradley_terry(kind, settings.outputs[settings.compare])
    return Task("reward", partial(pair_sample, weighed=kind != "regular"), objective, **head)


TASKS: dict[str, Callable[..., Task]] = {"sft": _sft, "reward": _reward}
"""By the name of the group of settings, which the task is made by."""
