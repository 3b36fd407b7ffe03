"""Prompts: the user's file becomes this round's rows; faulty lines are set aside in prompts/faulty.jsonl."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Sequence

from nemo_sdg.errors import RowError, UserError
from nemo_sdg.records import Prompt, read_rows
from nemo_sdg.stages.context import Context
from nemo_sdg.store import StageStore, commit_rows, rows_digest


def run(context: Context) -> dict:
    """Totals of the stage; rows for other rounds count as dropped. Raises UserError when no prompt can be used."""
    return context.on_writer(lambda: _write(context))


def turn(prompts: Sequence[Prompt], number: int, per_round: int | None, wave: int = 0) -> list[Prompt]:
    """The prompts of one wave of round `number`: the next `per_round` ones, from the start again after the last.

    A round begins one turn after the round before it, however many waves that had. A prompt that comes again in the same
    round has an id of its own there, `<id>~2`, and so responses of its own.
    """
    count = min(per_round or len(prompts), len(prompts))
    seen: Counter[str] = Counter()
    for earlier in range(wave + 1):
        first = (number + earlier) * count
        chosen = [prompts[(first + i) % len(prompts)] for i in range(count)]
        seen.update(prompt.id for prompt in chosen)
    return [p if seen[p.id] == 1 else replace(p, id=f"{p.id}~{seen[p.id]}") for p in chosen]


def _write(context: Context) -> dict:
    settings, file = context.config.data, context.config.data.prompts
    prompts, faults = read_rows(file, Prompt)
    if not prompts:
        found = f"{faults[0].reason} in line {faults[0].line}" if faults else "an empty file"
        raise UserError("no prompt can be used", where=file, found=found, expected="rows with 'prompt' or 'messages'")
    if faults and context.config.run.strict:
        where, way_out = f"{file}:{faults[0].line}", "correct it, or set run.strict=false"
        raise RowError(faults[0].reason, where=where, way_out=way_out)
    chosen = turn(prompts, context.round, settings.prompts_per_round, context.part.wave)
    store = StageStore(
        context.folder / "prompts",
        context.fingerprint(
            "prompts",
            inputs=rows_digest(file),
            prompts_per_round=settings.prompts_per_round,
            **context.provenance,
        ),
        len(chosen),
        context.config.generate.group_size,
    )
    if store.done:
        return store.totals
    for group in store.missing():
        store.commit(group, [prompt.to_row() for prompt in chosen[group.start : group.stop]])
    commit_rows(store.dir / "faulty.jsonl", [fault.to_row() for fault in faults])
    return store.finish(
        {
            "rows_in": len(prompts) + len(faults),
            "kept": len(chosen),
            "dropped": {"left for another round": len(prompts) - len(chosen)} if len(prompts) > len(chosen) else {},
            "faulty": len(faults),
        }
    )
