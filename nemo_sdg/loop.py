"""The rounds, readable aloud: prompts, responses, scores, verdicts, revisions, selection, datasets, training, evaluation.

Each stage reads what the stages before it have committed and does only what is missing, so the same command
continues a run that was killed anywhere, and does nothing on a run that is finished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, replace
from typing import Any

from nemo_sdg.checkpoints import keeping
from nemo_sdg.config import RunConfig
from nemo_sdg.config.judging import checks_responses, compares
from nemo_sdg.config.starting import begins_with
from nemo_sdg.console import Console
from nemo_sdg.engine.residents import Residents
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.parallel import stopping
from nemo_sdg.parallel.phases import Phases
from nemo_sdg.parallel.watch import doing
from nemo_sdg.stages import ablate, assemble, compare, evaluate, generate, judge, overlap, prompts, revise, score, select
from nemo_sdg.stages import start, train
from nemo_sdg.stages.context import Context
from nemo_sdg.stages.timing import timed
from nemo_sdg.store.waves import OF_PARTS, Part, ready_parts, wave_parts
from nemo_sdg.stages.target import Progress
from nemo_sdg.store import Run
from nemo_sdg.store.spent import Spent

STAGES = {
    "start": start,
    "prompts": prompts,
    "revise": revise,
    "generate": generate,
    "score": score,
    "judge": judge,
    "select": select,
    "compare": compare,
    "assemble": assemble,
    "train": train,
    "evaluate": evaluate,
    "ablate": ablate,
}
"""The stages in their order: what a run begins with, then those of a round."""


def run(config: RunConfig, opened: Run, mesh: Mesh, console: Console, rules: tuple[Callable, ...] = ()) -> None:
    """All rounds. The policy and the reward model that a round has trained generate and score in the next."""
    context_of = _rounds(config, opened, mesh, console, rules)
    if begins_with(config):
        _stage("start", context_of(0))
    for number in range(config.run.rounds):
        context = context_of(number)
        known = select.Candidates()
        _stage("select", context.at(_candidates(context, known)), known)
        del known  # its figures of every candidate, which training has no use for
        last = ["ablate"] if config.evaluate.ablation and number == 0 else []
        for name in (*(["compare"] if compares(config) else []), "assemble", "train", "evaluate", *last):
            _stage(name, context)
        context.on_writer(lambda: keeping.tidy(opened.out, config))


def _candidates(context: Context, known: select.Candidates) -> Part:
    """Waves of scored responses, revised if the settings say so, until enough of them pass; the last wave."""
    config, wave = context.config, 0
    if config.select.target is not None and context.mesh.writer:
        context = replace(context, spent=Spent(context.folder))
    while True:
        _stage("prompts", context.at(Part(wave)))
        _make(context.at(Part(wave)))
        _revise(context, wave)
        if config.select.target is None:
            return Part(wave)
        here = context.at(Part(wave))
        progress = Progress.of(here, select.accepted(here, known))
        context.console.say(progress.line())
        if progress.reached:
            return Part(wave)
        progress.check(config)
        wave += 1


def run_stage(
    name: str, config: RunConfig, opened: Run, mesh: Mesh, console: Console, rules: tuple[Callable, ...] = (), *,
    round: int,
) -> dict[str, Any]:  # fmt: skip
    """One stage of one round; what it counted last. Candidates are of all waves and revisions that have what the stage
    reads, revision is with the responses to each pass and all that is asked of them, selection of the waves it needs."""
    context = _rounds(config, opened, mesh, console, rules)(round)
    if name == "select":
        known = select.Candidates()
        return _stage(name, context.at(select.last_wave(context, known)), known)
    if name not in OF_PARTS:
        return _stage(name, context)
    for place in context.on_writer(lambda: [astuple(part) for part in ready_parts(name, config, context.folder)]):
        totals = _revise(context, place[0]) if name == "revise" else _stage(name, context.at(Part(*place)))
    return totals


def _stage(name: str, context: Context, *known: Any) -> dict[str, Any]:
    if name in ("start", "train", "ablate"):
        context.residents.clear()
    with doing(f"{name} of round {context.round}"):
        stopping.heed_all(context.mesh)
        with timed(context, name) as ended:
            return ended(name, STAGES[name].run(context, *known))


def _revise(context: Context, wave: int) -> dict[str, Any]:
    """What nearly passed of a wave, pass by pass; what the last pass counted, if there is any."""
    totals: dict[str, Any] = {}
    for part in wave_parts(wave, context.config.revise.passes)[1:]:
        totals = _stage("revise", context.at(part))
        _make(context.at(part))
    return totals


def _make(context: Context) -> None:
    """Responses with all that selection asks about them."""
    _generate_and_score(context)
    if checks_responses(context.config):
        _stage("judge", context)


def _generate_and_score(context: Context) -> None:
    """One after the other; or both at the same time, where the scorer reads what the one generator commits."""
    if context.config.models.placement == "in_turn" or len(context.samples) > 1:
        _stage("generate", context)
        _stage("score", context)
        return
    with timed(context, "generate", "score") as ended:
        generating = generate.Stage(context)
        scoring = score.Stage(context, generating.store)
        for name, totals in zip(("generate", "score"), overlap.run(context, generating, scoring)):
            ended(name, totals)


def _rounds(
    config: RunConfig, opened: Run, mesh: Mesh, console: Console, rules: tuple[Callable, ...]
) -> Callable[[int], Context]:
    """What the stages of a round are given, by its number. All rounds share the ranks' groups and the models."""
    phases, residents = Phases.lay(config, mesh), Residents(several=config.models.placement != "in_turn")
    return lambda number: Context(config, opened, number, mesh, console, phases, residents, rules)
