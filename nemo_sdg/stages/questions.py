"""Asking the judge about rows: its answers are committed group by group, in a store of their own, so that a run which
was killed asks nothing twice that it has kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from nemo_sdg.engine.backends.choosing import judging
from nemo_sdg.records import Prompt
from nemo_sdg.stages import groups
from nemo_sdg.stages.context import Context
from nemo_sdg.store import Group, StageStore

Questions = Mapping[str, str]
"""Name of a question, unique in the stage -> its text."""


class Inquiry:
    """The questions of one stage, over the groups of its input.

    Args:
        stage: the stage's name.
        folder: of the answers.
        rows: length of the input.
        turns: how often each of its groups comes; see `StageStore`.
        settings: what the questions depend on, beside the judge.
    """

    def __init__(
        self, context: Context, stage: str, folder: Path, *, rows: int, group_size: int, turns: int = 1,
        **settings: Any,
    ) -> None:
        self._context, self._stage = context, stage
        self._role, self._phase = context.judge(), context.phase("judge")
        self.identity: dict[str, str] = context.on_writer(self._role.identity)
        self._sampling = judging(context.config)
        fingerprint = context.fingerprint(
            stage,
            inputs=[self.identity],
            sampling=vars(self._sampling),
            dtype=context.dtype(self._role),
            spec=context.config.models.spec if self._role.local else None,
            **settings,
        )
        self.store = StageStore(folder, fingerprint, rows, group_size, turns)
        self._judge: Any = None

    def run(self, ask: Callable[[Group], Questions], count: Callable[[Group], int]) -> None:
        """Asks what has no answer yet.

        Args:
            ask: the questions of a group; it is called for the groups of this rank in their order.
            count: how many these are. Both say the same on every rank.
        """

        def asked(group: Group) -> list[tuple[Prompt, list[str]]]:
            # A text that cannot be asked is set aside by whoever is asked, as any other prompt.
            rows = [Prompt(name, ({"role": "user", "content": text},)) for name, text in ask(group).items()]
            return [(row, [f"{row.id}#0"]) for row in rows]

        def totals(rows: Iterator[dict], faulty: dict[str, int]) -> dict[str, Any]:
            wanted = sum(map(count, self.store.groups))
            return {"rows_in": wanted, "kept": sum(1 for _ in rows), "dropped": {}, "faulty": faulty}

        with groups.Work(self._context, self.store, self._stage, mesh=self._phase.mesh, count=count) as work:
            try:
                for _ in work.run(work.mine, asked, self._answers, self.identity):
                    pass
            finally:
                if self._judge is not None:
                    self._judge.close()
        work.finish(totals)

    def answers(self, group: Group) -> dict[str, str]:
        """Name of a question -> its answer, of those that were answered."""
        return {row["prompt_id"]: row["response"] for row in self.store.rows_of(group)}

    def _answers(self, prompts: Iterable[Prompt]) -> Iterator[Any]:
        """Where there is nothing to ask, nobody is loaded or called."""
        prompts = iter(prompts)
        first = next(prompts, None)
        if first is None:
            return
        self._judge = self._role.open(self._phase.mesh, self.identity)
        yield from self._judge.generate(chain([first], prompts), self._sampling, 1)
