"""Revise: what nearly passed goes back to the policy, in words made from what scored low and what was broken.

Reads the candidates of a wave and of its revisions so far, and writes the prompts of the next revision.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from nemo_sdg.config import RunConfig
from nemo_sdg.parallel import stopping
from nemo_sdg.quality.revision import Shortfall, ask, shortfalls
from nemo_sdg.quality.rules import checks
from nemo_sdg.quality.versions import Versions
from nemo_sdg.records import Prompt, Scored
from nemo_sdg.stages.context import Context
from nemo_sdg.store.waves import Part, candidates
from nemo_sdg.store import StageStore
from nemo_sdg.synthesis.requirements import named
from nemo_sdg.synthesis.revision import Request

VERSION = 2
"""Raised when the code changes what the same settings give."""
_LIMITS = ("minimum", "maximum", "weights", "minimum_scalar", "finished", "checks")
"""Settings of `select` that say which rows are good enough."""


def run(context: Context) -> dict:
    """Totals of the stage, counted in answers, of which the best version so far counts: "dropped" are those that are
    not asked for again."""
    return context.on_writer(lambda: _write(context))


def _write(context: Context) -> dict:
    config, part, folder = context.config, context.part, context.run.round(context.round)
    before = [Part(part.wave, revision).folder(folder) / candidates(config) for revision in range(part.revision)]
    sources = [StageStore.finished(place) for place in before]
    answers, request = _Answers(sources, config), Request(config.revise.request)
    store = StageStore(
        context.folder / "prompts",
        context.fingerprint(
            "revise",
            version=VERSION,
            inputs=[source.digest for source in sources],
            limits={name: getattr(config.select, name) for name in _LIMITS},
            margin=config.revise.margin,
            request=request.digest,
            **context.provenance,
        ),
        len(answers.wanting),
        config.generate.group_size,
    )
    if store.done:
        return store.totals
    for group in store.missing():
        rows = answers.rows(answers.wanting[group.start : group.stop])
        store.commit(group, [_prompt(row, config, part.revision, request).to_row() for row in rows])
        stopping.heed()
    kept, dropped = len(answers.wanting), answers.dropped
    return store.finish({"rows_in": kept + dropped.total(), "kept": kept, "dropped": dict(dropped), "faulty": 0})


class _Answers:
    """The answers of a wave in their best versions so far: numbers and reasons, while the texts stay on the disk.

    Rows are numbered from 0 through all sources.
    """

    def __init__(self, sources: Sequence[StageStore], config: RunConfig) -> None:
        versions, reasons, self._sources, self._ends = Versions(config.select), [], sources, [0]
        for source in sources:
            for row in map(Scored.believed, source.read()):
                versions.add(row)
                reasons.append(_why_not(*_limits_missed(row, config), config.revise.margin))
            self._ends.append(len(versions))
        best = versions.best().tolist()
        self.wanting = [number for number in best if reasons[number] is None]
        """Those that are asked for again, in the order of their first versions."""
        self.dropped = Counter(reason for number in best if (reason := reasons[number]) is not None)
        self._lines: dict[int, tuple[int, Iterator[bytes]]] = {}

    def rows(self, numbers: Sequence[int]) -> Iterator[Scored]:
        """The rows of these numbers. They lie in each source in this order, or nearly so; else it is read again."""
        for number in numbers:
            source = bisect_right(self._ends, number) - 1
            number -= self._ends[source]
            at, lines = self._lines.get(source, (number + 1, iter(())))
            if number < at:
                at, lines = 0, self._sources[source].lines()
            line = next(islice(lines, number - at, None))
            self._lines[source] = number + 1, lines
            yield Scored.believed(json.loads(line))


def _limits_missed(row: Scored, config: RunConfig) -> tuple[list[Shortfall] | None, list[str]]:
    return shortfalls(row, config.select), checks(row.extra, config.select)


def _prompt(row: Scored, config: RunConfig, revision: int, request: Request) -> Prompt:
    """The prompt that asks for the next version of an answer."""
    found, broken = _limits_missed(row, config)
    lines = named(broken, row.extra, f"row {row.id}")
    said = row.messages[-1]["content"]
    return ask(row, request(shortfalls=found, broken=lines, prompt=said, response=row.response), revision)


def _why_not(found: Sequence[Shortfall] | None, broken: Sequence[str], margin: float) -> str | None:
    if found is None:
        return "not to be mended by another answer"
    if not found and not broken:
        return "good enough"
    return "too far off" if any(shortfall.distance > margin for shortfall in found) else None
