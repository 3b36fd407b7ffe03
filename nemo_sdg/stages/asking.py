"""Asking the policy while prompts are made: one level of questions at a time, the answers committed as rows.

A level is the next step of every kind that has one. Its answers lie in a store of their own below prompts/, named by
the questions themselves, so a run that was killed goes on where it was and asks nothing twice.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_sdg.config import fingerprint
from nemo_sdg.engine.backends.choosing import Role, sampling
from nemo_sdg.errors import RowError
from nemo_sdg.records import Prompt
from nemo_sdg.stages import groups
from nemo_sdg.stages.context import Context
from nemo_sdg.store import Group, StageStore
from nemo_sdg.synthesis.kinds import Ask, Item, Kind, World, gather, prompt_of

VERSION = 1
"""Raised when the code changes what the same settings give."""


@dataclass
class Making:
    """One kind on its way: what it has so far, and what was left out."""

    kind: Kind
    world: World
    items: list[Item]
    dropped: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    """Questions so far."""


class Asker:
    """Lets the policy answer the steps of several kinds, level by level."""

    def __init__(self, context: Context, role: Role, identity: dict[str, str]) -> None:
        self._context, self._role, self._identity = context, role, identity
        self._phase, self._level = context.phase("generate"), 0
        limit = context.config.data.synthesis.max_tokens or context.config.generate.max_tokens
        # What ends or measures a response says nothing about the questions that lead to prompts.
        self.sampling = dataclasses.replace(
            sampling(context.config, round=context.turn), max_tokens=limit, min_tokens=0, stop=(), logprobs=False
        )

    def run(self, makings: Sequence[Making]) -> None:
        """Takes every kind through all its steps."""
        steps = [tuple(making.kind.steps(making.world)) for making in makings]
        for level in range(max(map(len, steps), default=0)):
            under_way = [(making, own[level]) for making, own in zip(makings, steps) if level < len(own)]
            asks = [list(step.ask(making.world, making.items)) for making, step in under_way]
            names = [
                [f"{making.kind.name}/{step.name}/{number}" for number in range(len(some))]
                for (making, step), some in zip(under_way, asks)
            ]
            prompts = [_prompt(ask, name) for some, own in zip(asks, names) for ask, name in zip(some, own)]
            answers = self._answers([prompt for prompt in prompts if prompt is not None])
            for (making, step), some, own in zip(under_way, asks, names):
                given = [answers.get(name) for name in own]
                making.items, left_out = gather(making.world, step, some, given)
                making.dropped += left_out
                making.asked += sum(ask.messages is not None for ask in some)

    def _answers(self, prompts: list[Prompt]) -> dict[str, str]:
        """Prompt id -> answer, of those that were answered."""
        if not prompts:
            return {}
        context, number = self._context, self._level
        self._level += 1
        name = context.fingerprint(
            "ask",
            version=VERSION,
            inputs=[fingerprint([prompt.to_row() for prompt in prompts]), self._identity],
            sampling=dataclasses.asdict(self.sampling),
            dtype=context.dtype(self._role),
            spec=context.config.models.spec if self._role.local else None,
        )
        folder = context.folder / "prompts" / f"answers-{number:02d}"
        store = StageStore(folder, name, len(prompts), context.config.generate.group_size)

        def asked(group: Group) -> list[tuple[Prompt, list[str]]]:
            return [(prompt, [f"{prompt.id}#0"]) for prompt in prompts[group.start : group.stop]]

        def totals(rows: Any, faulty: dict[str, int]) -> dict[str, Any]:
            return {"rows_in": len(prompts), "kept": sum(1 for _ in rows), "dropped": {}, "faulty": faulty}

        mesh = self._phase.mesh
        with groups.Work(context, store, f"prompts, step {number + 1}", mesh=mesh, count=_size) as work:
            if work.mine:
                generator = self._role.open(mesh, self._identity)
                try:
                    for _ in work.run(
                        work.mine, asked, lambda some: generator.generate(some, self.sampling, 1), self._identity
                    ):
                        pass
                finally:
                    generator.close()
        work.finish(totals)
        return {row["prompt_id"]: row["response"] for row in store.read()}


def _prompt(ask: Ask, name: str) -> Prompt | None:
    """The row that the policy is asked; None of an item that passes, and of one that cannot be asked and so has no
    answer."""
    if ask.messages is None:
        return None
    try:
        return prompt_of(ask, name)
    except RowError:
        return None


def _size(group: Group) -> int:
    return group.stop - group.start
