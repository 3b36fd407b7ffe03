"""One fit of a run: shown as it goes, told to who asked, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

from nemo_sdg.parallel import stopping
from nemo_sdg.stages.context import Context
from nemo_sdg.stages.examples import line_file
from nemo_sdg.stages.lessons import held_out_rows
from nemo_sdg.store.fits import Fit
from nemo_sdg.training.fit import fit
from nemo_sdg.training.listeners import Listeners
from nemo_sdg.training.measures import in_words


def train(
    context: Context, one: Fit, *, title: str, start: Path | str, datasets: Path, out: Path, seed: int
) -> dict[str, Any]:
    """Trains a model, or finds it done: {"steps", "rows", "rows_set_aside", "tokens", "first_loss", "last_loss"}, and what
    validation found best."""
    config, settings = context.config, one.settings(context.config)
    stopping.heed_all(context.mesh)  # before a model is loaded for it
    place = out.relative_to(context.run.out).as_posix()
    with context.console.progress(title, settings.steps) as bar:
        result = fit(
            one.task,
            settings,
            models=config.models,
            start=start,
            rows=datasets / line_file(one.dataset(config), "train"),
            out=out,
            mesh=context.mesh,
            seed=seed,
            on_step=_follow(bar.advance),
            sequence_parallel=config.topology.sequence_parallel,
            virtual_stages=config.topology.virtual_stages,
            validation=held_out_rows(config, one, datasets),
            on_validation=lambda told: context.console.say(f"{one.folder} after step {told['step']}: {in_words(told)}"),
            listeners=Listeners.of(config.run, context.run.out, place),
        )
    totals = {key: result[key] for key in ("steps", "rows", "rows_set_aside", "tokens")}
    totals.update(first_loss=result["losses"][0], last_loss=result["losses"][-1])
    if settings.validate_every:
        totals.update(best_step=result["best_step"], best_loss=min(told["loss"] for told in result["validation"]))
    if "seconds" in result:  # it was trained now, not found done
        where = {"round": context.round, "kind": one.folder, "folder": place}
        context.run.events("trained", **where, seconds=round(result["seconds"], 3), **totals)
    return totals


def _follow(advance: Callable[[int, str], Any]) -> Callable[[int, float], None]:
    """Moves the bar to the steps that are done; a resumed fit begins with many."""
    seen = 0

    def on_step(step: int, loss: float) -> None:
        nonlocal seen
        advance(step + 1 - seen, f"loss {loss:.3f}")
        seen = step + 1

    return on_step
