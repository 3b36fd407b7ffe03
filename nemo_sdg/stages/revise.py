"""Revise: what nearly passed goes back to the policy, in words made from what scored low and what was broken.

Reads the candidates of a wave and of its revisions so far, and writes the prompts of the next revision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nemo_sdg.config import RunConfig
from nemo_sdg.quality.revision import Shortfall, ask, best_versions, shortfalls
from nemo_sdg.quality.rules import checks
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
    """Totals of the stage, counted in answers, of which the best version so far counts: "dropped" are those that are not
    asked for again."""
    return context.on_writer(lambda: _write(context))


def _write(context: Context) -> dict:
    config, part, folder = context.config, context.part, context.run.round(context.round)
    before = [Part(part.wave, revision).folder(folder) / candidates(config) for revision in range(part.revision)]
    sources = [StageStore.finished(place) for place in before]
    rows = [Scored.from_row(row, str(source.dir)) for source in sources for row in source.read()]
    versions = best_versions(rows, config.select)
    request = Request(config.revise.request)
    prompts, dropped = _prompts(versions, config, part.revision, request)
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
        len(prompts),
        config.generate.group_size,
    )
    if store.done:
        return store.totals
    for group in store.missing():
        store.commit(group, [prompt.to_row() for prompt in prompts[group.start : group.stop]])
    return store.finish({"rows_in": len(versions), "kept": len(prompts), "dropped": dict(dropped), "faulty": 0})


def _prompts(
    versions: Sequence[Scored], config: RunConfig, revision: int, request: Request
) -> tuple[list[Prompt], Counter[str]]:
    prompts: list[Prompt] = []
    dropped: Counter[str] = Counter()
    for row in versions:
        found, broken = shortfalls(row, config.select), checks(row.extra, config.select)
        reason = _why_not(found, broken, config.revise.margin)
        if reason is None:
            lines = named(broken, row.extra, f"row {row.id}")
            said = row.messages[-1]["content"]
            text = request(shortfalls=found, broken=lines, prompt=said, response=row.response)
            prompts.append(ask(row, text, revision))
        else:
            dropped[reason] += 1
    return prompts, dropped


def _why_not(found: Sequence[Shortfall] | None, broken: Sequence[str], margin: float) -> str | None:
    if found is None:
        return "not to be mended by another answer"
    if not found and not broken:
        return "good enough"
    return "too far off" if any(shortfall.distance > margin for shortfall in found) else None
