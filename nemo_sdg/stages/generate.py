"""Instruct answers the round's prompts: prompts/ becomes responses/."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from nemo_sdg.engine.backends import Refusal
from nemo_sdg.engine.backends.choosing import Role, sampling
from nemo_sdg.quality.revision import answered
from nemo_sdg.records import Prompt, Response
from nemo_sdg.stages import groups
from nemo_sdg.stages.context import Context
from nemo_sdg.store import Group, StageStore

VERSION = 2
"""Raised when the code changes what the same settings give."""
_BY_THE_WAY = ("backend", "endpoint", "others", "topology", "slots", "prefill_tokens", "kv_cache_bytes", "fixed_shape")
"""Settings that say where and how fast; who answers stands in the backend's identity."""


def run(context: Context) -> dict[str, Any]:
    """Generates what is not committed yet.

    Returns:
        {"rows_in", "kept", "dropped", "faulty"}, counted in responses, and "tokens", "by_finish_reason"; of several
        generators also "by_generator".
    """
    stage = Stage(context)
    for _ in stage.groups():
        pass
    return stage.finish()


class Turn:
    """One generator of the stage, and the groups that it makes.

    Args:
        number: its place among the generators.
        first: the number of its first sample of a prompt.
    """

    def __init__(self, stage: Stage, number: int, role: Role, identity: dict[str, str], first: int) -> None:
        context = stage.context
        self.number, self.role, self.identity, self.first = number, role, identity, first
        self.samples, self.phase = context.samples[number], context.place(role)
        seed = context.config.run.seed
        self.provenance = {**identity, "template": "instruct", "seed": seed, **context.provenance}

    def told(self, context: Context) -> dict[str, Any]:
        """What its rows depend on."""
        dtype, spec = context.dtype(self.role), context.config.models.spec if self.role.local else None
        return {"samples": self.samples, "made by": self.provenance, "dtype": dtype, "spec": spec}

    def ids(self, prompt: Prompt) -> list[str]:
        return [f"{prompt.id}#{sample}" for sample in range(self.first, self.first + self.samples)]


class Stage:
    """The stage on one rank. Its groups can be made one by one, while somebody scores those that are there.

    Several generators answer the same prompts one after the other, so that one local model is held at a time; a
    generator's part of a row group stands behind the part of the generator before it.
    """

    def __init__(self, context: Context) -> None:
        self.context, self.settings = context, context.config.generate
        self.source = StageStore.finished(context.folder / "prompts")
        roles = context.generators
        identities = context.on_writer(lambda: [role.identity() for role in roles])
        self.turns = [
            Turn(self, number, role, identity, sum(context.samples[:number]))
            for number, (role, identity) in enumerate(zip(roles, identities))
        ]
        own, *others = self.turns
        self.role, self.phase = own.role, own.phase
        settings = {**groups.relevant(self.settings, *_BY_THE_WAY), "samples": own.samples}
        settings |= {"others": [turn.told(context) for turn in others]} if others else {}
        fingerprint = context.fingerprint(
            "generate",
            version=VERSION,
            inputs=[self.source.digest, own.provenance],
            dtype=context.dtype(self.role),
            spec=context.config.models.spec if self.role.local else None,
            **settings,
        )
        # The groups of its input, so that a group is read when its turn comes.
        rows, group_size = self.source.rows, self.source.group_size
        self.store = StageStore(context.folder / "responses", fingerprint, rows, group_size, len(self.turns))
        self.works = [self._work(turn) for turn in self.turns]
        self.work = self.works[0]

    def groups(self) -> Iterator[Group]:
        """Makes this rank's part of what is missing; yields each group when it is committed."""
        both = list(zip(self.turns, self.works))
        servers = [turn.role for turn, work in both if work.missing and turn.role.server is not None]
        if servers:  # before anything is generated that would be waited for in vain
            self.context.on_writer(lambda: [role.reach() for role in servers] and None)
        # One rank asks a server, so the others need not wait for it while they have something to do.
        for turn, work in sorted(both, key=lambda one: not one[0].role.local):
            with work:
                if work.mine:
                    yield from self._made(turn, work)

    def _made(self, turn: Turn, work: groups.Work) -> Iterator[Group]:
        generator = turn.role.open(turn.phase.mesh, turn.identity)
        wanted = sampling(self.context.config, round=self.context.round)

        def call(prompts: Iterator[Prompt]) -> Iterator[Response | Refusal]:
            return map(self._as_answer, generator.generate(prompts, wanted, turn.samples, turn.first))

        def ask(group: Group) -> list[tuple[Prompt, list[str]]]:
            asked = self.source.rows_of(self.source.groups[group.index // len(self.turns)])
            return [(prompt, turn.ids(prompt)) for prompt in map(Prompt.from_row, asked)]

        try:
            yield from work.run(work.mine, ask, call, provenance=turn.provenance)
        finally:
            generator.close()

    def finish(self) -> dict[str, Any]:
        return self.work.finish(self._totals)

    def _work(self, turn: Turn) -> groups.Work:
        count = len(self.turns)
        title, mesh = f"generate, {turn.number + 1} of {count}" if count > 1 else "generate", turn.phase.mesh
        return groups.Work(self.context, self.store, title, mesh=mesh, count=self._count, turn=turn.number)

    def _count(self, group: Group) -> int:
        return (group.stop - group.start) * self.context.samples[group.turn]

    def _as_answer(self, row: Response | Refusal) -> Response | Refusal:
        """A revision is an answer to the prompt that it goes back to."""
        return answered(row) if self.context.part.revision and isinstance(row, Response) else row

    def _totals(self, rows: Iterator[dict], faulty: dict[str, int]) -> dict[str, Any]:
        kept = tokens = 0
        reasons, makers = Counter(), Counter()
        for row in rows:
            kept, tokens = kept + 1, tokens + len(row["response_token_ids"])
            reasons[row["finish_reason"]] += 1
            makers[row["provenance"]["policy"]] += 1
        several = {"by_generator": dict(makers)} if len(self.turns) > 1 else {}
        return {
            "rows_in": self.source.rows * sum(self.context.samples),
            "kept": kept,
            "dropped": {},
            "faulty": faulty,
            "tokens": tokens,
            "by_finish_reason": dict(sorted(reasons.items())),
            **several,
        }
