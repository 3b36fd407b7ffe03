"""The round's models: SFT of the policy and regression of the reward model, each from its start, by NeMo.

Writes `policy/` and `reward/`, whole or not at all. A model that is not trained carries the previous one on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from nemo_sdg.config import Training
from nemo_sdg.training.fit import fit

if TYPE_CHECKING:
    from nemo_sdg.stages.context import Context

KINDS = {"policy": "sft", "reward": "reward"}
"""The folder of each model, and the settings and rows (`datasets/<name>.jsonl`) that it is trained with."""


def run(context: Context) -> dict[str, Any]:
    """Trains what is enabled and not done yet.

    Returns:
        By kind: {"steps", "rows", "rows_set_aside", "tokens", "first_loss", "last_loss"}, or None where it is
        carried on.
    """
    totals: dict[str, Any] = {}
    for kind, name in KINDS.items():
        settings: Training = getattr(context.config, name)
        totals[kind] = _train(context, kind, name, settings) if settings.enabled else None
    return totals


def _train(context: Context, kind: str, name: str, settings: Training) -> dict[str, Any]:
    folder = context.run.round(context.round)
    with context.console.progress(f"train {kind}", settings.steps) as bar:
        result = fit(
            name,
            settings,
            models=context.config.models,
            start=context.config.models.base if settings.start_from == "base" else context.model(kind),
            rows=folder / "datasets" / f"{name}.jsonl",
            out=folder / kind,
            mesh=context.mesh,
            seed=context.config.run.seed + context.round,
            on_step=_follow(bar.advance),
            sequence_parallel=context.config.topology.sequence_parallel,
        )
    totals = {key: result[key] for key in ("steps", "rows", "rows_set_aside", "tokens")}
    totals.update(first_loss=result["losses"][0], last_loss=result["losses"][-1])
    if "seconds" in result:
        context.run.events("trained", round=context.round, kind=kind, seconds=round(result["seconds"], 3), **totals)
    return totals


def _follow(advance: Callable[[int], Any]) -> Callable[[int, float], None]:
    """Moves the bar to the steps that are done; a resumed fit begins with many."""
    seen = 0

    def on_step(step: int, loss: float) -> None:
        nonlocal seen
        advance(step + 1 - seen)
        seen = step + 1

    return on_step
