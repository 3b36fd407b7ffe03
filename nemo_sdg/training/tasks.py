"""What can be trained: for each kind of fit its rows, its head, and its loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Callable

from nemo_sdg.config import RewardTraining, Training
from nemo_sdg.training import samples
from nemo_sdg.training.objectives import SumAndCount, bradley_terry, regression, token_nll
from nemo_sdg.training.pairs import pair_sample
from nemo_sdg.training.preference import preference_loss, preference_sample


@dataclass(frozen=True)
class Task:
    """One kind of fit."""

    name: str
    """The group of settings it is trained with."""
    sample: samples.Make
    objective: Callable[[Training], SumAndCount]
    """Its loss under these settings."""
    reward: bool = False
    """It trains a reward model."""
    reference: bool = False
    """Its loss compares with the log-probabilities of the model that it starts from."""
    fresh_head: bool = False
    """A reward model does not go on with the head of the one that it starts from."""


TASKS = {
    task.name: task
    for task in (
        Task("sft", samples.sft_sample, lambda settings: token_nll),
        Task("preference", preference_sample, preference_loss, reference=True),
        Task("reward", samples.reward_sample, lambda settings: regression, reward=True),
    )
}


def task_of(name: str, settings: Training) -> Task:
    """The kind of fit that these settings ask for."""
    task = TASKS[name]
    if not isinstance(settings, RewardTraining):
        return task
    task = replace(task, fresh_head=not settings.keep_head)
    if not settings.pairs:
        return task
    kind = settings.objective.removeprefix("bradley_terry").removeprefix("_") or "regular"
    objective = bradley_terry(kind, settings.outputs[settings.compare])
    return replace(task, sample=partial(pair_sample, weighed=kind != "regular"), objective=lambda settings: objective)
