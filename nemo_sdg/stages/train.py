"""The round's models: SFT of the policy and training of the reward model, each from its start, by NeMo.

Writes `policy/` and `reward/`, whole or not at all. A model that is not trained carries the previous one on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

from nemo_sdg.config import Training
from nemo_sdg.stages.context import Context
from nemo_sdg.stages.lessons import held_out_rows, training_rows
from nemo_sdg.training.fit import fit
from nemo_sdg.training.measures import in_words

KINDS = {"policy": "sft", "reward": "reward"}
"""The folder of each model, and the settings and rows (`datasets/<name>.jsonl`) that it is trained with."""


def run(context: Context) -> dict[str, Any]:
    """Trains what is enabled and not done yet.

    Returns:
        By kind: {"steps", "rows", "rows_set_aside", "tokens", "first_loss", "last_loss"}, or None where the
        previous model is carried on.
    """
    totals: dict[str, Any] = {}
    for kind, name in KINDS.items():
        settings: Training = getattr(context.config, name)
        totals[kind] = _train(context, kind, name, settings) if settings.enabled else None
    return totals


def _train(context: Context, kind: str, name: str, settings: Training) -> dict[str, Any]:
    datasets = context.folder / "datasets"
    with context.console.progress(f"train {kind}", settings.steps) as bar:
        result = fit(
            name,
            settings,
            models=context.config.models,
            start=_start(context, kind, settings.start_from),
            rows=training_rows(context.config, name, datasets),
            out=context.folder / kind,
            mesh=context.mesh,
            seed=context.config.run.seed + context.round,
            on_step=_follow(bar.advance),
            sequence_parallel=context.config.topology.sequence_parallel,
            virtual_stages=context.config.topology.virtual_stages,
            validation=held_out_rows(context.config, name, datasets),
            on_validation=lambda told: context.console.say(f"{kind} after step {told['step']}: {in_words(told)}"),
        )
    totals = {key: result[key] for key in ("steps", "rows", "rows_set_aside", "tokens")}
    totals.update(first_loss=result["losses"][0], last_loss=result["losses"][-1])
    if settings.validate_every:
        totals.update(best_step=result["best_step"], best_loss=min(told["loss"] for told in result["validation"]))
    if "seconds" in result:  # it was trained now, not found done
        context.run.events("trained", round=context.round, kind=kind, seconds=round(result["seconds"], 3), **totals)
    return totals


def _start(context: Context, kind: str, start_from: str) -> Path | str:
    """The model that a fit goes on from."""
    if start_from == "base":
        return context.config.models.base
    if start_from == "policy":  # the one of this round, where it has trained one: it comes before the reward model
        return context.trained("policy", context.round) or context.config.models.instruct
    return context.model(kind)


def _follow(advance: Callable[[int, str], Any]) -> Callable[[int, float], None]:
    """Moves the bar to the steps that are done; a resumed fit begins with many."""
    seen = 0

    def on_step(step: int, loss: float) -> None:
        nonlocal seen
        advance(step + 1 - seen, f"loss {loss:.3f}")
        seen = step + 1

    return on_step
