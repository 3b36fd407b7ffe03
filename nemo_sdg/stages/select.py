"""Select: every candidate of a round gets a decision, and each dropped one its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice
from typing import Any

from nemo_sdg import resources
from nemo_sdg.config import Select, rule_digests
from nemo_sdg.errors import UserError
from nemo_sdg.quality import Selector
from nemo_sdg.quality.revision import gains, superseded
from nemo_sdg.records import Scored
from nemo_sdg.stages.context import Context
from nemo_sdg.store import StageStore, digest
from nemo_sdg.store.waves import Part, candidates, wave_parts

VERSION = 3
"""Raised when the code changes what the same settings give."""


def run(context: Context) -> dict[str, Any]:
    """Decides on all candidates up to the wave of the context.

    Returns:
        Totals of the stage: rows in, kept, dropped by reason, faulty; `length` and `variety` of what is kept; what each
        pass of revision won.
    """
    return context.on_writer(lambda: _write(context))


def accepted(context: Context) -> int:
    """How many rows would be kept of the candidates up to the wave of the context; never more than the target."""

    def count() -> int:
        sources = list(_scored(context))
        return _selector(context, sources, context.config.select).num_kept

    return context.on_writer(count)


def last_wave(context: Context) -> Part:
    """The wave with which the candidates that are there reach the target, and `run` stops. Raises UserError when they
    don't reach it."""
    target, wave = context.config.select.target, 0
    while target is not None and (passed := accepted(context.at(Part(wave)))) < target:
        wave += 1
        following = Part(wave).folder(context.run.round(context.round))
        if not context.on_writer(following.is_dir):
            raise UserError(
                "the target is not reached yet", where=following.parent,
                found=f"{passed:,} rows accepted in {wave} waves", expected=f"select.target = {target:,}",
                way_out="`nemo-sdg run` makes more candidates and selects then",
            )  # fmt: skip
    return Part(wave)


def _scored(context: Context) -> Iterator[tuple[Part, StageStore]]:
    """The candidates of each part, in order."""
    folder, rows = context.run.round(context.round), candidates(context.config)
    for wave in range(context.part.wave + 1):
        for part in wave_parts(wave, context.config.revise.passes):
            yield part, StageStore.finished(part.folder(folder) / rows)


def _rows(sources: list[tuple[Part, StageStore]]) -> Iterator[Scored]:
    return (Scored.from_row(row, str(store.dir)) for _, store in sources for row in store.read())


def _selector(context: Context, sources: list[tuple[Part, StageStore]], settings: Select) -> Selector:
    """One that has seen all rows."""
    older = superseded(_rows(sources), settings) if context.config.revise.passes else set()
    selector = Selector(settings, context.rules, older)
    for row in _rows(sources):
        selector.add(row)
    selector.settle()
    return selector


def _write(context: Context) -> dict[str, Any]:
    settings, sources = context.config.select, list(_scored(context))
    files = [*settings.decontaminate, *([settings.likeness] if settings.likeness else [])]
    fingerprint = context.fingerprint(
        "select",
        version=VERSION,
        inputs=[*(store.digest for _, store in sources), *(digest(resources.resolve(file)) for file in files)],
        rules=list(rule_digests(context.rules).items()),
        **dataclasses.asdict(settings),
    )
    count = sum(store.totals["kept"] for _, store in sources)
    folder = context.run.round(context.round) / "decisions"
    store = StageStore(folder, fingerprint, count, context.config.generate.group_size)
    if store.done:
        return store.totals
    selector = _selector(context, sources, settings)
    missing = {group.index for group in store.missing()}
    decisions = selector.decisions(_rows(sources))
    for group in store.groups:
        rows = [decision.to_row() for decision in islice(decisions, group.stop - group.start)]
        if group.index in missing:
            store.commit(group, rows)
    assert next(decisions, None) is None, f"{folder.parent} holds more scored rows than it says"
    totals = selector.totals()
    narrowed = ", ".join(totals["variety"].get("narrowed", ()))
    if narrowed:
        context.console.say(f"the selection narrows variety: {narrowed}; decisions/SUCCESS.json has the figures")
    waves = {} if settings.target is None else {"waves": context.part.wave + 1}
    return store.finish({**totals, **waves, **_revised(context, sources)})


def _revised(context: Context, sources: list[tuple[Part, StageStore]]) -> dict[str, Any]:
    """What each pass of revision won over the one before, over all waves."""
    passes = context.config.revise.passes
    if not passes:
        return {}
    rows = [list(_rows([source for source in sources if source[0].revision == n])) for n in range(passes + 1)]
    return {"revised": [dataclasses.asdict(gain) for gain in gains(rows, context.config.select)]}
