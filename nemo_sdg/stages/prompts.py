"""Prompts: the user's file becomes this round's rows; faulty lines are set aside in prompts/faulty.jsonl."""

from __future__ import annotations

from typing import Sequence

from nemo_sdg.errors import RowError, UserError
from nemo_sdg.records import Prompt, read_rows
from nemo_sdg.stages.context import Context
from nemo_sdg.store import StageStore, commit_rows, rows_digest


def run(context: Context) -> dict:
    """Totals of the stage; rows for other rounds count as dropped. Raises UserError when no prompt can be used."""
    return context.on_writer(lambda: _write(context))


def turn(prompts: Sequence[Prompt], number: int, per_round: int | None) -> list[Prompt]:
    """The prompts of round `number`: the next `per_round` ones, from the start again after the last."""
    count = min(per_round or len(prompts), len(prompts))
    return [prompts[(number * count + i) % len(prompts)] for i in range(count)]


def _write(context: Context) -> dict:
    settings, file = context.config.data, context.config.data.prompts
    prompts, faults = read_rows(file, Prompt)
    if not prompts:
        found = f"{faults[0].reason} in line {faults[0].line}" if faults else "an empty file"
        raise UserError("no prompt can be used", where=file, found=found, expected="rows with 'prompt' or 'messages'")
    if faults and context.config.run.strict:
        where, way_out = f"{file}:{faults[0].line}", "correct it, or set run.strict=false"
        raise RowError(faults[0].reason, where=where, way_out=way_out)
    chosen = turn(prompts, context.round, settings.prompts_per_round)
    store = StageStore(
        context.run.round(context.round) / "prompts",
        context.fingerprint(
            "prompts",
            inputs=rows_digest(file),
            round=context.round,
            prompts_per_round=settings.prompts_per_round,
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
