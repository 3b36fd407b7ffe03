"""The round's models: the policy by SFT and then on pairs, and the reward model, each from its start, by NeMo.

Writes `policy/` and `reward/`, and what lies between a start and the policy, each whole or not at all. A model that is
not trained carries the previous one on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_sdg.stages import fitting
from nemo_sdg.stages.context import Context
from nemo_sdg.store.fits import POLICY, REWARD, Fit, fits


def run(context: Context) -> dict[str, Any]:
    """Trains what is enabled and not done yet.

    Returns:
        By folder: {"steps", "rows", "rows_set_aside", "tokens", "first_loss", "last_loss"}; None for a policy or reward
        model where the previous one is carried on.
    """
    totals: dict[str, Any] = dict.fromkeys((POLICY, REWARD))
    before = None
    for one in fits(context.config):
        totals[one.folder] = _train(context, one, before)
        before = one
    return totals


def _train(context: Context, one: Fit, before: Fit | None) -> dict[str, Any]:
    return fitting.train(
        context,
        one,
        title=f"train {one.folder}",
        start=_start(context, one, before),
        datasets=context.folder / "datasets",
        out=context.folder / one.folder,
        seed=context.config.run.seed + context.round + (one.iteration << 16),  # each goes through its rows anew
    )


def _start(context: Context, one: Fit, before: Fit | None) -> Path | str:
    """The model that a fit goes on from."""
    start = one.settings(context.config).start_from
    if one.iteration or start == "sft":
        return context.folder / before.folder
    if start == "policy":  # the one of this round, where it has trained one: it comes before the reward model
        # Not `context.trained`: what a gate says of it later must not change what this fit has started from.
        made = any(fit.folder == POLICY for fit in fits(context.config))
        return context.folder / POLICY if made else context.model(POLICY)
    return context.config.models.base if start == "base" else context.model(REWARD if one.task == "reward" else POLICY)
