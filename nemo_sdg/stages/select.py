"""Select: every scored response of a round gets a decision, and each dropped one its reason."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

from nemo_sdg.quality.revision import gains
from nemo_sdg.quality.target import decide_round
from nemo_sdg.records import Decision, Scored
from nemo_sdg.stages.context import Context
from nemo_sdg.store.waves import Part, wave_parts
from nemo_sdg.store import StageStore


def run(context: Context) -> dict[str, Any]:
    """Decides on all candidates up to the wave of the context; totals of the stage, with the dropped rows counted by
    reason, and what each pass of revision won."""
    return context.on_writer(lambda: _write(context))


def accepted(context: Context) -> int:
    """How many rows would be kept, without a target, of the candidates up to the wave of the context."""

    def count() -> int:
        settings = dataclasses.replace(context.config.select, target=None)
        rows = [row for _, store in _scored(context) for row in _rows(store)]
        return sum(decision.kept for decision in decide_round(rows, settings))

    return context.on_writer(count)


def _scored(context: Context) -> Iterator[tuple[Part, StageStore]]:
    """The scored rows of each part, in order."""
    folder = context.run.round(context.round)
    for wave in range(context.part.wave + 1):
        for part in wave_parts(wave, context.config.revise.passes):
            yield part, StageStore.finished(part.folder(folder) / "scored")


def _rows(store: StageStore) -> list[Scored]:
    return [Scored.from_row(row, str(store.dir)) for row in store.read()]


def _write(context: Context) -> dict[str, Any]:
    settings = context.config.select
    sources = list(_scored(context))
    by_part = {part: _rows(store) for part, store in sources}
    rows = [row for part in by_part for row in by_part[part]]
    store = StageStore(
        context.run.round(context.round) / "decisions",
        context.fingerprint(
            "select", inputs=[source.digest for _, source in sources], **dataclasses.asdict(settings)
        ),
        len(rows),
        context.config.generate.group_size,
    )
    if store.done:
        return store.totals
    decisions = decide_round(rows, settings)
    for group in store.missing():
        store.commit(group, [decision.to_row() for decision in decisions[group.start : group.stop]])
    waves = {} if settings.target is None else {"waves": context.part.wave + 1}
    return store.finish({**_totals(decisions), **waves, **_revised(context, by_part)})


def _totals(decisions: list[Decision]) -> dict[str, Any]:
    dropped = Counter(decision.reason for decision in decisions if not decision.kept)
    kept = len(decisions) - sum(dropped.values())
    return {"rows_in": len(decisions), "kept": kept, "dropped": dict(dropped.most_common()), "faulty": 0}


def _revised(context: Context, by_part: dict[Part, list[Scored]]) -> dict[str, Any]:
    """What each pass of revision won over the one before, over all waves."""
    passes = context.config.revise.passes
    if not passes:
        return {}
    rows = [[row for part in by_part if part.revision == n for row in by_part[part]] for n in range(passes + 1)]
    return {"revised": [dataclasses.asdict(gain) for gain in gains(rows, context.config.select)]}
