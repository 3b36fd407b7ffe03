"""Reward gives each response its five attributes: responses/ becomes scored/, row group by row group."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from nemo_sdg.config import ATTRIBUTES, MISSING
from nemo_sdg.errors import StoreError
from nemo_sdg.parallel.agree import on_lead
from nemo_sdg.records import Response
from nemo_sdg.stages import groups
from nemo_sdg.stages.context import Context
from nemo_sdg.store import Group, StageStore

VERSION = 2
"""Raised when the code changes what the same settings give."""


def run(context: Context) -> dict[str, Any]:
    """Scores what is not committed yet.

    Returns:
        {"rows_in", "kept", "dropped", "faulty"} in responses, and "mean", that of each attribute that was scored.
    """
    with Stage(context, StageStore.finished(context.folder / "responses")) as stage:
        for _ in stage.groups(stage.work.mine):
            pass
    return stage.finish()


class Stage:
    """The stage on one rank, group by group.

    A group of scored rows is the responses' group of the same index. The fingerprint holds theirs, which is known
    before they are, so scoring may begin while responses are still generated.
    """

    def __init__(self, context: Context, source: StageStore) -> None:
        self.context, self.source = context, source
        self.role, self.phase = context.role("reward"), context.phase("score")
        self.identity = context.on_writer(self.role.identity)
        fingerprint = context.fingerprint(
            "score",
            version=VERSION,
            inputs=[source.fingerprint, self.identity],
            dtype=context.dtype(self.role),
            spec=context.config.models.spec if self.role.local else None,
            # A folder of ours tells itself what it scores; others are asked for what the settings name.
            **({"own": own} if (own := context.config.reward.own) and not self.role.local else {}),
        )
        self.store = source.beside(context.folder / "scored", fingerprint)
        self.work = groups.Work(context, self.store, "score", mesh=self.phase.mesh, count=self._count)
        self._scorer: Any = None

    def __enter__(self) -> Stage:
        self.work.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.work.__exit__(*error)
        if self._scorer is not None:
            self._scorer.close()

    def groups(self, some: Iterable[Group]) -> Iterator[Group]:
        """Scores groups whose responses are committed; yields each when its scores are too."""
        some = list(some)
        if not some:
            return
        if self._scorer is None:
            self._scorer = self.role.open(self.phase.mesh, self.identity)
        # A server takes them in one stream. Models on ranks of ours get one group a call: what is packed into one
        # forward pass decides the last digits, so it must not depend on what else there is to do.
        calls = [some] if self.role.backend == "endpoint" else [[group] for group in some]
        for call in calls:
            yield from self.work.run(call, self._ask, lambda rows: self._scorer.score(rows), provenance=self.identity)

    def finish(self) -> dict[str, Any]:
        return self.work.finish(self._totals)

    def _ask(self, group: Group) -> list[tuple[Response, list[str]]]:
        # One rank reads for its replica: the file may be so new that the others do not see it yet.
        rows = [Response.from_row(row) for row in on_lead(self.phase.mesh, lambda: self._read(group))]
        self.work.advance(self._count(group) - len(rows))  # those that were set aside before
        return [(row, [row.id]) for row in rows]

    def _read(self, group: Group) -> list[dict]:
        deadline = time.monotonic() + self.context.config.run.timeout_s
        while self.source.part_of(group) is None and time.monotonic() < deadline:
            time.sleep(0.1)  # a shared file system shows it to some ranks first
        return self.source.rows_of(group)

    def _count(self, group: Group) -> int:
        return (group.stop - group.start) * self.context.samples[group.turn]

    def _totals(self, rows: Iterator[dict], faulty: dict[str, int]) -> dict[str, Any]:
        sums, scored, kept, asked = dict.fromkeys(ATTRIBUTES, 0.0), Counter(), 0, 0
        answers: dict[str, int] = {}
        for response in self.source.committed():
            answers[response["id"]] = hash(response["response"])
            asked += 1
        for row in rows:
            if answers.get(row["id"]) != hash(row["response"]):
                raise StoreError(
                    "these scores are of another response", where=self.store.dir, found=f"row {row['id']}",
                    expected=f"the text in {self.source.dir}", way_out="delete this folder to score them again",
                )  # fmt: skip
            kept += 1
            for name, score in row["scores"].items():
                if score != MISSING:  # some reward models give one score only
                    sums[name] = sums.get(name, 0.0) + score
                    scored[name] += 1
        means = {name: total / scored[name] for name, total in sums.items() if scored[name]}
        return {"rows_in": asked, "kept": kept, "dropped": {}, "faulty": faulty, "mean": means}
