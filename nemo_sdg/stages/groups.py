"""The row groups of a stage that runs a model: who does which, what is set aside, and the count at the end.

Groups are shared out over the data-parallel replicas. A replica's lead rank commits; the writer finishes.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from nemo_sdg.errors import RowError
from nemo_sdg.records import Response
from nemo_sdg.stages.context import Context
from nemo_sdg.store import Group, StageStore, commit_rows

Totals = Callable[[list[dict], dict[str, int]], dict[str, Any]]
"""(all rows of the stage, rows set aside by reason) -> what SUCCESS.json keeps."""


def relevant(settings: Any, *but: str) -> dict[str, Any]:
    """The settings that decide what a stage writes, without those that only say how fast."""
    return {key: value for key, value in dataclasses.asdict(settings).items() if key not in but}


class Work:
    """A `with` block around the groups that are still to be done."""

    def __init__(self, context: Context, store: StageStore, title: str, *, count: Callable[[Group], int]) -> None:
        self._context, self._store, mesh = context, store, context.mesh
        # One rank looks, for a listing may change while others commit.
        missing = context.on_writer(lambda: [group.index for group in store.missing()])
        self.needed = bool(missing)
        self.mine = [store.groups[index] for index in missing[mesh.dp_rank :: mesh.dp]]
        self._bar = context.console.progress(title, sum(map(count, self.mine)))

    def __enter__(self) -> "Work":
        self.advance = self._bar.__enter__().advance
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def commit(self, group: Group, rows: Sequence[Response], faulty: Mapping[str, RowError]) -> None:
        """Writes a group's rows; what was set aside stands beside them before the group counts as done."""
        if not self._context.mesh.replica_lead:
            return
        if faulty:
            lines = [{"id": name, "reason": why.what, "detail": str(why)} for name, why in faulty.items()]
            commit_rows(self._faulty_file(group), lines)
        else:  # of an attempt that was killed before its rows were committed
            self._faulty_file(group).unlink(missing_ok=True)
        self._store.commit(group, [row.to_row() for row in rows])

    def finish(self, totals: Totals) -> dict[str, Any]:
        """Declares the stage done once every replica has committed; its totals, on every rank."""
        self._context.mesh.meet()
        return self._context.on_writer(lambda: self._count(totals))

    def _count(self, totals: Totals) -> dict[str, Any]:
        store = self._store
        if not store.done:
            files = [self._faulty_file(group) for group in store.groups]
            lines = [line for file in files if file.is_file() for line in file.read_bytes().splitlines()]
            faulty = Counter(json.loads(line)["reason"] for line in lines)
            store.finish(totals(list(store.committed()), dict(faulty.most_common())))
        return store.totals

    def _faulty_file(self, group: Group) -> Path:
        return self._store.dir / f"faulty-{group.index:05d}.jsonl"
