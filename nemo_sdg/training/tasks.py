"""What can be trained: for each kind of fit its rows, its head, and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Callable

from nemo_sdg.config import OUTPUTS, RewardTraining, Training
from nemo_sdg.training import measures, samples
from nemo_sdg.training.measures import Measure
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
    measure: Callable[[Training], Measure]
    """How it is validated."""
    reward: bool = False
    """It trains a reward model."""
    reference: bool = False
    """Its loss compares with the log-probabilities of the model that it starts from."""
    fresh_head: bool = False
    """A reward model does not go on with the head of the one that it starts from."""
    outputs: Mapping[str, int] = field(default_factory=lambda: dict(OUTPUTS))
    """The outputs of a reward model that are trained, by name."""
    held_out: samples.Make | None = None
    """Makes the samples of validation, where it is not `sample`."""


def _labels(settings: Training) -> Measure:
    ours = settings if isinstance(settings, RewardTraining) else RewardTraining()
    return measures.labels(ours.outputs, ours.compare)


TASKS = {
    task.name: task
    for task in (
        Task("sft", samples.sft_sample, lambda settings: token_nll, lambda settings: measures.tokens()),
        Task("preference", preference_sample, preference_loss, measures.preferences, reference=True),
        Task("reward", samples.reward_sample, lambda settings: regression, _labels, reward=True),
    )
}


def task_of(name: str, settings: Training) -> Task:
    """The kind of fit that these settings ask for."""
    task = TASKS[name]
    if not task.reward or not isinstance(settings, RewardTraining):
        return task
    task = replace(task, fresh_head=not settings.keep_head, outputs=settings.trained)
    if not settings.pairs:
        return replace(task, sample=partial(samples.reward_sample, outputs=settings.outputs))
    kind = settings.objective.removeprefix("bradley_terry").removeprefix("_") or "regular"
    output = settings.outputs[settings.compare]
    make = partial(pair_sample, weighed=kind != "regular")
    return replace(
        task, sample=make, held_out=partial(make, split="validation"),
        objective=lambda settings: bradley_terry(kind, output), measure=lambda settings: measures.pairs(kind, output),
    )  # fmt: skip
