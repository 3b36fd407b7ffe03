"""The round's models: the policy by SFT and then on pairs, and the reward model, each from its start, by NeMo.

Writes `policy/` and `reward/`, and what lies between a start and the policy, each whole or not at all. A model that is
not trained carries the previous one on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

from nemo_sdg.stages.context import Context
from nemo_sdg.stages.examples import line_file
from nemo_sdg.stages.lessons import held_out_rows
from nemo_sdg.store.fits import POLICY, REWARD, Fit, fits
from nemo_sdg.training.fit import fit
from nemo_sdg.training.measures import in_words


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
    settings = one.settings(context.config)
    datasets = context.folder / "datasets"
    with context.console.progress(f"train {one.folder}", settings.steps) as bar:
        result = fit(
            one.task,
            settings,
            models=context.config.models,
            start=_start(context, one, before),
            rows=datasets / line_file(one.dataset(context.config), "train"),
            out=context.folder / one.folder,
            mesh=context.mesh,
            seed=context.config.run.seed + context.round + (one.iteration << 16),  # each goes through its rows anew
            on_step=_follow(bar.advance),
            sequence_parallel=context.config.topology.sequence_parallel,
            virtual_stages=context.config.topology.virtual_stages,
            validation=held_out_rows(context.config, one, datasets),
            on_validation=lambda told: context.console.say(f"{one.folder} after step {told['step']}: {in_words(told)}"),
        )
    totals = {key: result[key] for key in ("steps", "rows", "rows_set_aside", "tokens")}
    totals.update(first_loss=result["losses"][0], last_loss=result["losses"][-1])
    if settings.validate_every:
        totals.update(best_step=result["best_step"], best_loss=min(told["loss"] for told in result["validation"]))
    if "seconds" in result:  # it was trained now, not found done
        context.run.events("trained", round=context.round, kind=one.folder, seconds=round(result["seconds"], 3), **totals)
    return totals


def _start(context: Context, one: Fit, before: Fit | None) -> Path | str:
    """The model that a fit goes on from."""
    start = one.settings(context.config).start_from
    if one.iteration or start == "sft":
        return context.folder / before.folder
    if start == "policy":  # the one of this round, where it has trained one: it comes before the reward model
        return context.trained(POLICY, context.round) or context.config.models.instruct
    return context.config.models.base if start == "base" else context.model(REWARD if one.task == "reward" else POLICY)


def _follow(advance: Callable[[int, str], Any]) -> Callable[[int, float], None]:
    """Moves the bar to the steps that are done; a resumed fit begins with many."""
    seen = 0

    def on_step(step: int, loss: float) -> None:
        nonlocal seen
        advance(step + 1 - seen, f"loss {loss:.3f}")
        seen = step + 1

    return on_step
