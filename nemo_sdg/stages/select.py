"""Select: every candidate of a round gets a decision, and each dropped one its reason."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from nemo_sdg import resources
from nemo_sdg.config import rule_digests
from nemo_sdg.errors import UserError
from nemo_sdg.parallel import stopping
from nemo_sdg.quality import Selector
from nemo_sdg.records import Scored
from nemo_sdg.stages.context import Context
from nemo_sdg.store import StageStore, digest, lines
from nemo_sdg.store.files import dump
from nemo_sdg.store.waves import Part, candidates, wave_parts

VERSION = 3
"""Raised when the code changes what the same settings give."""


class Candidates:
    """What selection knows of the candidates of a round: a few numbers per row, no texts.

    It lives on the writer, from wave to wave: each part is read when it is new, and once more when its decisions are
    written. What a kill has lost is read anew.
    """

    def __init__(self) -> None:
        self._selector: Selector | None = None
        self._files: list[str | None] = []
        self._seen: list[tuple[Part, str]] = []

    def up_to(self, context: Context, sources: Sequence[tuple[Part, StageStore]]) -> Selector:
        """Settled on all rows of these parts."""
        there, files = [(part, store.digest) for part, store in sources], _files(context)
        if self._selector is None or self._files != files or self._seen != there[: len(self._seen)]:
            self._selector = Selector(context.config.select, context.rules, versions=context.config.revise.passes > 0)
            self._files, self._seen = files, []
        new = sources[len(self._seen) :]
        for part, store in new:
            for row in store.read():
                stopping.heed()
                self._selector.add(Scored.believed(row), part.revision)
        if new:
            self._selector.settle()
        self._seen = there
        return self._selector


def run(context: Context, known: Candidates | None = None) -> dict[str, Any]:
    """Decides on all candidates up to the wave of the context.

    Args:
        known: what was learned of them while they were made.
    Returns:
        Totals of the stage: rows in, kept, dropped by reason, faulty; `length` and `variety` of what is kept; what each
        pass of revision won.
    """
    return context.on_writer(lambda: _write(context, known or Candidates()))


def accepted(context: Context, known: Candidates) -> int:
    """How many rows would be kept of the candidates up to the wave of the context; never more than the target."""
    return context.on_writer(lambda: known.up_to(context, list(_scored(context))).num_kept)


def last_wave(context: Context, known: Candidates) -> Part:
    """The wave with which the candidates that are there reach the target, and `run` stops. Raises UserError when they
    don't reach it."""
    target, wave = context.config.select.target, 0
    while target is not None and (passed := accepted(context.at(Part(wave)), known)) < target:
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


def _files(context: Context) -> list[str | None]:
    """Digests of the files that rows are held against."""
    settings = context.config.select
    files = [*settings.decontaminate, *([settings.likeness] if settings.likeness else [])]
    return [digest(resources.resolve(file)) for file in files]


def _write(context: Context, known: Candidates) -> dict[str, Any]:
    settings, sources = context.config.select, list(_scored(context))
    fingerprint = context.fingerprint(
        "select",
        version=VERSION,
        inputs=[*(store.digest for _, store in sources), *_files(context)],
        rules=list(rule_digests(context.rules).items()),
        **dataclasses.asdict(settings),
    )
    count = sum(store.totals["kept"] for _, store in sources)
    folder = context.run.round(context.round) / "decisions"
    store = StageStore(folder, fingerprint, count, context.config.generate.group_size)
    if store.done:
        return store.totals
    selector = known.up_to(context, sources)
    missing = {group.index for group in store.missing()}
    decisions = _decisions(selector, sources)
    for group in store.groups:
        rows = list(islice(decisions, group.stop - group.start))
        if group.index in missing:
            store.commit(group, rows)
            stopping.heed()
    assert next(decisions, None) is None, f"{folder.parent} holds more scored rows than it says"
    totals = selector.totals()
    narrowed = ", ".join(totals["variety"].get("narrowed", ()))
    if narrowed:
        context.console.say(f"the selection narrows variety: {narrowed}; decisions/SUCCESS.json has the figures")
    waves = {} if settings.target is None else {"waves": context.part.wave + 1}
    passes = context.config.revise.passes
    revised = {"revised": [dataclasses.asdict(gain) for gain in selector.gains(passes)]} if passes else {}
    return store.finish({**totals, **waves, **revised})


def _decisions(selector: Selector, sources: Sequence[tuple[Part, StageStore]]) -> Iterator[bytes]:
    """The lines of all decisions. Few rows are read for that: their decision is put into the line that they have."""
    for index, line in enumerate(line for _, store in sources for line in store.lines()):
        columns, decision = selector.verdict(index)
        made = None if selector.wants(index) else lines.decided(line, columns, **decision)
        yield made or dump(selector.decision(index, Scored.believed(json.loads(line))).to_row())
