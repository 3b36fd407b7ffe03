"""The rounds, readable aloud: prompts, responses, scores, selection, datasets, training, evaluation, and again.

Each stage reads what the stages before it have committed and does only what is missing, so the same command
continues a run that was killed anywhere, and does nothing on a run that is finished.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nemo_sdg.config import RunConfig
from nemo_sdg.console import Console
from nemo_sdg.engine.residents import Residents
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.parallel.phases import Phases
from nemo_sdg.stages import assemble, evaluate, generate, overlap, prompts, score, select, train
from nemo_sdg.stages.context import Context
from nemo_sdg.store import Run

STAGES = {
    "prompts": prompts,
    "generate": generate,
    "score": score,
    "select": select,
    "assemble": assemble,
    "train": train,
    "evaluate": evaluate,
}
"""The stages of a round in their order."""


def run(config: RunConfig, opened: Run, mesh: Mesh, console: Console, rules: tuple[Callable, ...] = ()) -> None:
    """All rounds. The policy and the reward model that a round has trained generate and score in the next."""
    context = _rounds(config, opened, mesh, console, rules)
    at_once = config.models.placement != "in_turn"
    for number in range(config.run.rounds):
        for name in STAGES:
            if name == "generate" and at_once:
                _generate_and_score(context(number))
            elif name != "score" or not at_once:
                _stage(name, context(number))


def run_stage(
    name: str,
    config: RunConfig,
    opened: Run,
    mesh: Mesh,
    console: Console,
    rules: tuple[Callable, ...] = (),
    *,
    round: int,
) -> dict[str, Any]:
    """One stage of one round; what it counted."""
    return _stage(name, _rounds(config, opened, mesh, console, rules)(round))


def _stage(name: str, context: Context) -> dict[str, Any]:
    if name == "train":
        context.residents.clear()
    return _told(name, context, STAGES[name].run(context))


def _generate_and_score(context: Context) -> None:
    """Both stages at the same time; the scorer reads what the generator commits."""
    generating = generate.Stage(context)
    scoring = score.Stage(context, generating.store)
    for name, totals in zip(("generate", "score"), overlap.run(context, generating, scoring)):
        _told(name, context, totals)


def _told(name: str, context: Context, totals: dict[str, Any]) -> dict[str, Any]:
    context.run.events("stage", round=context.round, stage=name, totals=totals)
    return totals


def _rounds(
    config: RunConfig, opened: Run, mesh: Mesh, console: Console, rules: tuple[Callable, ...]
) -> Callable[[int], Context]:
    """What the stages of a round are given, by its number. All rounds share the ranks' groups and the models."""
    phases, residents = Phases.lay(config, mesh), Residents(several=config.models.placement != "in_turn")
    return lambda number: Context(config, opened, number, mesh, console, phases, residents, rules)
