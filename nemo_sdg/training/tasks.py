"""What can be trained: for each kind of fit its rows, its head, and its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from nemo_sdg.config import Training
from nemo_sdg.training import samples
from nemo_sdg.training.objectives import SumAndCount, regression, token_nll


@dataclass(frozen=True)
class Task:
    """One kind of fit."""

    name: str
    """The group of settings it is trained with, and the rows: `datasets/<name>.jsonl`."""
    sample: samples.Make
    objective: Callable[[Training], SumAndCount]
    """Its loss under these settings."""
    reward: bool = False
    """It trains a reward model."""


TASKS = {
    task.name: task
    for task in (
        Task("sft", samples.sft_sample, lambda settings: token_nll),
        Task("reward", samples.reward_sample, lambda settings: regression, reward=True),
    )
}
