"""Prompts: the rows of a round, from the user's file, made by the policy for a domain brief, or both.

What cannot be used of the user's files is set aside in prompts/faulty.jsonl.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nemo_sdg.errors import RowError, UserError
from nemo_sdg.parallel import stopping
from nemo_sdg.records import Fault, Prompt, read_rows, why_none
from nemo_sdg.stages.asking import VERSION, Asker, Making
from nemo_sdg.stages.context import Context
from nemo_sdg.store import StageStore, commit_rows, rows_digest
from nemo_sdg.store.waves import Part
from nemo_sdg.synthesis import own_checks
from nemo_sdg.synthesis.kinds import TOPICS, finished, with_own
from nemo_sdg.synthesis.plans import Plan
from nemo_sdg.synthesis.requirements import Requirement

_KNOWN = "one of the user's own"
"""Why a prompt is dropped that was made before and given as the user's now."""


def run(context: Context) -> dict:
    """Totals of the stage; rows for other rounds count as dropped. Raises UserError when no prompt can be used."""
    if context.config.data.synthesis.brief is None:
        return context.on_writer(lambda: _write(context))
    return _synthesise(context)


def turn(prompts: Sequence[Prompt], number: int, per_round: int | None, wave: int = 0) -> list[Prompt]:
    """The prompts of one wave of round `number`: the next `per_round` ones, from the start again after the last.

    A round begins one turn after the round before it, however many waves that had. A prompt that comes again in the
    same round has an id of its own there, `<id>~2`, and so responses of its own.
    """
    count = min(per_round or len(prompts), len(prompts))
    mark = "~"
    while any(mark in prompt.id for prompt in prompts):  # an id of the user's must not be that of another come again
        mark += "~"
    chosen = []
    for place in range(wave * count, (wave + 1) * count):
        prompt, times = prompts[(number * count + place) % len(prompts)], place // len(prompts) + 1
        chosen.append(prompt if times == 1 else replace(prompt, id=f"{prompt.id}{mark}{times}"))
    return chosen


def _read(context: Context) -> tuple[list[Prompt], list[Fault]]:
    """The rows of the user's file."""
    file = context.config.data.prompts
    prompts, faults = read_rows(file, Prompt)
    if not prompts:
        expected = "rows with 'prompt' or 'messages'"
        raise UserError("no prompt can be used", where=file, found=why_none(faults), expected=expected)
    return prompts, faults


def _write(context: Context) -> dict:
    settings, (prompts, faults) = context.config.data, _read(context)
    _strict(context, faults)
    for note in own_checks.notes(context.config, prompts) if (context.round, context.part) == (0, Part()) else ():
        context.console.say(f"note: {note}")
    chosen = turn(prompts, context.round, settings.prompts_per_round, context.part.wave)
    fingerprint = context.fingerprint(
        "prompts",
        inputs=rows_digest(settings.prompts),
        prompts_per_round=settings.prompts_per_round,
        **context.provenance,
    )
    left = len(prompts) - len(chosen)
    dropped = {"left for another round": left} if left else {}
    return _commit(context, fingerprint, chosen, faults, {"rows_in": len(prompts) + len(faults), "dropped": dropped})


def _synthesise(context: Context) -> dict:
    """Every rank plans the same; the ranks of generation answer, rank 0 writes."""
    data, settings = context.config.data, context.config.data.synthesis
    # First on one rank, which tells the others of a mistake in the user's files.
    name = context.on_writer(lambda: _plan(context)[0].identity())
    plan, own, faults = _plan(context)
    role = context.role("policy")
    identity = context.on_writer(role.identity)
    asker = Asker(context, role, identity)
    fingerprint = context.fingerprint(
        "prompts",
        version=VERSION,
        inputs=[name, identity, rows_digest(data.prompts) if settings.own_prompts else None],
        **context.provenance,
        prompts_per_round=data.prompts_per_round if settings.own_prompts else None,
        sampling=vars(asker.sampling),
        **({"checks": [check.to_row() for check in plan.checks]} if settings.own_prompts else {}),
    )
    done = context.on_writer(lambda: _done(context, fingerprint))
    if done is not None:
        return done
    topics = Making(TOPICS, plan.topics, TOPICS.begin(plan.topics, []))
    asker.run([topics])
    found = with_own(plan.topics, topics.items)
    makings = [Making(kind, world, kind.begin(world, found)) for kind, world in plan.worlds]
    asker.run(makings)
    return context.on_writer(lambda: _finish(context, fingerprint, plan, [topics, *makings], own, faults))


def _plan(context: Context) -> tuple[Plan, list[Prompt], list[Fault]]:
    """What is to be made, the user's own prompts if they are wanted, and what was set aside of the user's files."""
    settings = context.config.data.synthesis
    plan = Plan.load(settings, seed=context.config.run.seed, round=context.turn)
    own, faults = _read(context) if settings.own_prompts else ([], [])
    faults = [*plan.faults, *faults]
    _strict(context, faults)
    return plan, own, faults


def _done(context: Context, fingerprint: str) -> dict | None:
    """The totals of the stage where it was finished before with the same inputs."""
    folder = context.folder / "prompts"
    if not (folder / "SUCCESS.json").exists():
        return None
    before = StageStore.finished(folder)
    store = StageStore(folder, fingerprint, before.rows, before.group_size)
    return store.totals if store.done else None


def _finish(
    context: Context, fingerprint: str, plan: Plan, makings: Sequence[Making], given: Sequence[Prompt],
    faults: Sequence[Fault],
) -> dict:  # fmt: skip
    """The prompts of all kinds, in the order of the kinds, and what became of everything that was made."""
    wave = context.part.wave
    own = turn(given, context.round, context.config.data.prompts_per_round, wave) if given else []
    own = [_checked(prompt, plan.checks) for prompt in own]
    rows, kinds, theirs = list(own), {}, {prompt.id for prompt in own}
    dropped = Counter({"left for another round": len(given) - len(own)})
    for making in makings:
        dropped += making.dropped
        if making.kind is not TOPICS:
            prompts, left_out = finished(making.world, making.kind, making.items, plan.checks)
            dropped += left_out
            if wave:  # two waves may make the same prompt; each has responses of its own
                prompts = [replace(prompt, id=f"{prompt.id}~{wave + 1}") for prompt in prompts]
            new = [prompt for prompt in prompts if prompt.id not in theirs]
            dropped[_KNOWN] += len(prompts) - len(new)
            rows += new
            kinds[making.kind.name] = {"wanted": making.world.count, "made": len(new), "asked": making.asked}
    if len(rows) == len(own) and not dropped[_KNOWN]:
        found = ", ".join(f"{count} x {reason}" for reason, count in dropped.most_common(3)) or "no answer at all"
        way_out = "look at the answers in this folder; another policy or data.synthesis.max_tokens may help"
        raise UserError("no prompt could be made", where=context.folder / "prompts", found=found, way_out=way_out)
    rows_in = len(rows) + dropped.total() + len(faults)
    totals = {"rows_in": rows_in, "dropped": dict((+dropped).most_common()), "by_kind": kinds}
    return _commit(context, fingerprint, rows, faults, totals)


def _checked(prompt: Prompt, checks: Sequence[Requirement]) -> Prompt:
    """A prompt of the user's own with the checks of the brief before those that it brings. A column `checks` that is no
    list stays for the judge, which sets the row aside."""
    own = prompt.extra.get("checks") or []
    if not isinstance(own, list):
        return prompt
    of_brief = [check.to_row() for check in checks]
    return replace(prompt, extra={**prompt.extra, "checks": [*of_brief, *(row for row in own if row not in of_brief)]})


def _strict(context: Context, faults: Sequence[Fault]) -> None:
    if faults and context.config.run.strict:
        raise RowError(faults[0].reason, where=faults[0].place, way_out="correct it, or set run.strict=false")


def _commit(
    context: Context, fingerprint: str, chosen: Sequence[Prompt], faults: Sequence[Fault], totals: dict[str, Any]
) -> dict:
    group_size = context.config.generate.group_size
    store = StageStore(context.folder / "prompts", fingerprint, len(chosen), group_size)
    if store.done:
        return store.totals
    for group in store.missing():
        store.commit(group, [prompt.to_row() for prompt in chosen[group.start : group.stop]])
        stopping.heed()
    commit_rows(store.dir / "faulty.jsonl", [fault.to_row() for fault in faults])
    return store.finish({**totals, "kept": len(chosen), "faulty": len(faults)})
