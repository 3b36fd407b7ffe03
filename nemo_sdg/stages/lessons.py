"""Which rows a fit of a round learns from, and which it is validated on."""

from __future__ import annotations

from pathlib import Path

from nemo_sdg.config import RunConfig
from nemo_sdg.stages.examples import line_file


def dataset_of(config: RunConfig, task: str) -> str:
    """The dataset that a kind of fit learns from: sft, preference or reward."""
    return config.reward.rows if task == "reward" else task


def training_rows(config: RunConfig, task: str, datasets: Path) -> Path:
    return datasets / line_file(dataset_of(config, task), "train")


def held_out_rows(config: RunConfig, task: str, datasets: Path) -> Path | str | None:
    """The rows of validation; None where a fit is not validated, or there are none (which the settings refuse)."""
    settings = getattr(config, task)
    if settings.validate_every is None:
        return None
    if settings.validation is not None:
        return settings.validation
    if config.data.validation_share:
        return datasets / line_file(dataset_of(config, task), "validation")
    return config.evaluate.helpsteer2 if dataset_of(config, task) == "reward" else None
