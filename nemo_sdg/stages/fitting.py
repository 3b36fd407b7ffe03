"""One fit of a run: shown as it goes, told to who asked, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

from nemo_sdg.config import Training
from nemo_sdg.stages.context import Context
from nemo_sdg.training.fit import fit
from nemo_sdg.training.listeners import Listeners


def train(
    context: Context, task: str, settings: Training, *, title: str, start: Path | str, rows: Path, out: Path, seed: int
) -> dict[str, Any]:
    """Trains a model, or finds it done: {"steps", "rows", "rows_set_aside", "tokens", "first_loss", "last_loss"}."""
    place = out.relative_to(context.run.out).as_posix()
    with context.console.progress(title, settings.steps) as bar:
        result = fit(
            task,
            settings,
            models=context.config.models,
            start=start,
            rows=rows,
            out=out,
            mesh=context.mesh,
            seed=seed,
            on_step=_follow(bar.advance),
            sequence_parallel=context.config.topology.sequence_parallel,
            listeners=Listeners.of(context.config.run, context.run.out, place),
        )
    totals = {key: result[key] for key in ("steps", "rows", "rows_set_aside", "tokens")}
    totals.update(first_loss=result["losses"][0], last_loss=result["losses"][-1])
    if "seconds" in result:  # it was trained now, not found done
        where = {"round": context.round, "kind": out.name}
        context.run.events("trained", **where, folder=place, seconds=round(result["seconds"], 3), **totals)
    return totals


def _follow(advance: Callable[[int, str], Any]) -> Callable[[int, float], None]:
    """Moves the bar to the steps that are done; a resumed fit begins with many."""
    seen = 0

    def on_step(step: int, loss: float) -> None:
        nonlocal seen
        advance(step + 1 - seen, f"loss {loss:.3f}")
        seen = step + 1

    return on_step
