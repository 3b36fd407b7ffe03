"""Which rows a fit of a round is validated on."""

from __future__ import annotations

from pathlib import Path

from nemo_sdg.config import RunConfig
from nemo_sdg.stages.examples import line_file
from nemo_sdg.store.fits import Fit


def held_out_rows(config: RunConfig, fit: Fit, datasets: Path) -> Path | str | None:
    """The rows of validation; None where a fit is not validated, or there are none (which the settings refuse)."""
    settings, dataset = fit.settings(config), fit.dataset(config)
    if settings.validate_every is None:
        return None
    if settings.validation is not None:
        return settings.validation
    if config.data.validation_share:
        return datasets / line_file(dataset, "validation")
    return config.evaluate.helpsteer2 if dataset == "reward" else None
