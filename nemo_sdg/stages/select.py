"""Select: every scored response gets a decision, and each dropped one its reason."""

from __future__ import annotations

import dataclasses
from collections import Counter

from nemo_sdg.quality.selection import decide
from nemo_sdg.records import Scored
from nemo_sdg.stages.context import Context
from nemo_sdg.store import StageStore


def run(context: Context) -> dict:
    """Totals of the stage, with the dropped rows counted by reason."""
    return context.on_writer(lambda: _write(context))


def _write(context: Context) -> dict:
    folder, settings = context.run.round(context.round), context.config.select
    scored = StageStore.finished(folder / "scored")
    rows = [Scored.from_row(row, str(scored.dir)) for row in scored.read()]
    store = StageStore(
        folder / "decisions",
        context.fingerprint("select", inputs=scored.digest, **dataclasses.asdict(settings)),
        len(rows),
        context.config.generate.group_size,
    )
    if store.done:
        return store.totals
    decisions = decide(rows, settings)
    for group in store.missing():
        store.commit(group, [decision.to_row() for decision in decisions[group.start : group.stop]])
    dropped = Counter(decision.reason for decision in decisions if not decision.kept)
    kept = len(decisions) - sum(dropped.values())
    return store.finish({"rows_in": len(rows), "kept": kept, "dropped": dict(dropped.most_common()), "faulty": 0})
