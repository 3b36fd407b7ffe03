"""Instruct answers the round's prompts: prompts/ becomes responses/."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from nemo_sdg.engine.backends import Refusal
from nemo_sdg.engine.backends.choosing import sampling
from nemo_sdg.quality.revision import answered
from nemo_sdg.records import Prompt, Response
from nemo_sdg.stages import groups
from nemo_sdg.stages.context import Context
from nemo_sdg.store import Group, StageStore

VERSION = 2
"""Raised when the code changes what the same settings give."""
_BY_THE_WAY = ("backend", "endpoint", "topology", "slots", "prefill_tokens", "kv_cache_bytes", "fixed_shape")
"""Settings that say where and how fast; who answers stands in the backend's identity."""


def run(context: Context) -> dict[str, Any]:
    """Generates what is not committed yet.

    Returns:
        {"rows_in", "kept", "dropped", "faulty"}, counted in responses, and "tokens", "by_finish_reason".
    """
    with Stage(context) as stage:
        for _ in stage.groups():
            pass
    return stage.finish()


class Stage:
    """The stage on one rank. Its groups can be made one by one, while somebody scores those that are there."""

    def __init__(self, context: Context) -> None:
        self.context, self.settings = context, context.config.generate
        self.source = StageStore.finished(context.folder / "prompts")
        self.role, self.phase = context.role("policy"), context.phase("generate")
        self.identity = context.on_writer(self.role.identity)
        seed = context.config.run.seed
        self.provenance = {**self.identity, "template": "instruct", "seed": seed, **context.provenance}
        self.samples = context.samples
        fingerprint = context.fingerprint(
            "generate",
            version=VERSION,
            inputs=[self.source.digest, self.provenance],
            dtype=context.dtype(self.role),
            spec=context.config.models.spec if self.role.local else None,
            **{**groups.relevant(self.settings, *_BY_THE_WAY), "samples": self.samples},
        )
        # The groups of its input, so that a group is read when its turn comes.
        self.store = StageStore(context.folder / "responses", fingerprint, self.source.rows, self.source.group_size)
        self.work = groups.Work(context, self.store, "generate", mesh=self.phase.mesh, count=self._count)

    def __enter__(self) -> Stage:
        self.work.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.work.__exit__(*error)

    def groups(self) -> Iterator[Group]:
        """Makes this rank's part of what is missing; yields each group when it is committed."""
        if not self.work.mine:
            return
        generator = self.role.open(self.phase.mesh, self.identity)
        wanted = sampling(self.context.config, round=self.context.round)
        try:
            yield from self.work.run(
                self.work.mine,
                self._ask,
                lambda prompts: map(self._as_answer, generator.generate(prompts, wanted, self.samples)),
                provenance=self.provenance,
            )
        finally:
            generator.close()

    def finish(self) -> dict[str, Any]:
        return self.work.finish(self._totals)

    def _ask(self, group: Group) -> list[tuple[Prompt, list[str]]]:
        prompts = map(Prompt.from_row, self.source.rows_of(group))
        return [(p, [f"{p.id}#{sample}" for sample in range(self.samples)]) for p in prompts]

    def _count(self, group: Group) -> int:
        return (group.stop - group.start) * self.samples

    def _as_answer(self, row: Response | Refusal) -> Response | Refusal:
        """A revision is an answer to the prompt that it goes back to."""
        return answered(row) if self.context.part.revision and isinstance(row, Response) else row

    def _totals(self, rows: Iterator[dict], faulty: dict[str, int]) -> dict[str, Any]:
        kept = tokens = 0
        reasons: Counter[str] = Counter()
        for row in rows:
            kept, tokens = kept + 1, tokens + len(row["response_token_ids"])
            reasons[row["finish_reason"]] += 1
        return {
            "rows_in": self.source.rows * self.samples,
            "kept": kept,
            "dropped": {},
            "faulty": faulty,
            "tokens": tokens,
            "by_finish_reason": dict(sorted(reasons.items())),
        }
