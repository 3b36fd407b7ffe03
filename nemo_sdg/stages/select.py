"""Select: every scored response gets a decision, and each dropped one its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice
from typing import Any

from nemo_sdg import resources
from nemo_sdg.config import rule_digests
from nemo_sdg.quality import Selector
from nemo_sdg.records import Scored
from nemo_sdg.stages.context import Context
from nemo_sdg.store import StageStore, digest

VERSION = 2
"""Raised when the code changes what the same settings give."""


def run(context: Context) -> dict[str, Any]:
    """Totals of the stage: rows in, kept, dropped by reason, faulty; `length` and `variety` of what is kept."""
    return context.on_writer(lambda: _write(context))


def _write(context: Context) -> dict[str, Any]:
    settings, scored = context.config.select, StageStore.finished(context.folder / "scored")
    files = [*settings.decontaminate, *([settings.likeness] if settings.likeness else [])]
    fingerprint = context.fingerprint(
        "select",
        version=VERSION,
        inputs=[scored.digest, *(digest(resources.resolve(file)) for file in files)],
        rules=list(rule_digests(context.rules).items()),
        **dataclasses.asdict(settings),
    )
    store = StageStore(
        context.folder / "decisions", fingerprint, scored.totals["kept"], context.config.generate.group_size
    )
    if store.done:
        return store.totals
    selector = Selector(settings, context.rules)
    for row in _rows(scored):
        selector.add(row)
    selector.settle()
    missing = {group.index for group in store.missing()}
    decisions = selector.decisions(_rows(scored))
    for group in store.groups:
        rows = [decision.to_row() for decision in islice(decisions, group.stop - group.start)]
        if group.index in missing:
            store.commit(group, rows)
    assert next(decisions, None) is None, f"{scored.dir} holds more rows than it says"
    totals = selector.totals()
    narrowed = ", ".join(totals["variety"].get("narrowed", ()))
    if narrowed:
        context.console.say(f"the selection narrows variety: {narrowed}; decisions/SUCCESS.json has the figures")
    return store.finish(totals)


def _rows(scored: StageStore) -> Iterator[Scored]:
    return (Scored.from_row(row, str(scored.dir)) for row in scored.read())
