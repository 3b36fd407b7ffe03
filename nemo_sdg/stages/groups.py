"""The row groups of a stage that runs a model: who does which, what is set aside, and the count at the end.

Groups are shared out over the data-parallel replicas of the phase. A replica's lead rank commits; the job's writer
finishes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from nemo_sdg.engine.backends import Refusal
from nemo_sdg.errors import RowError, StoreError
from nemo_sdg.parallel import stopping
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.records import Response
from nemo_sdg.stages.context import Context
from nemo_sdg.store import Group, StageStore

Totals = Callable[[Iterator[dict], dict[str, int]], dict[str, Any]]
"""(all rows of the stage, rows set aside by reason) -> what SUCCESS.json keeps."""
Rows = Iterable["Response | Refusal"]
Asked = Sequence[tuple[Any, Sequence[str]]]
"""Inputs of a group, each with the ids of its rows."""


def relevant(settings: Any, *but: str) -> dict[str, Any]:
    """The settings that decide what a stage writes, without those that only say how fast."""
    return {key: value for key, value in dataclasses.asdict(settings).items() if key not in but}


class Work:
    """A `with` block around the groups that are still to be done.

    Args:
        mesh: the ranks of the phase; None where this rank takes no part.
        count: rows that a group will have.
        turn: whose groups, where several work on the same rows.
    """

    def __init__(
        self, context: Context, store: StageStore, title: str, *, mesh: Mesh | None, count: Callable[[Group], int],
        turn: int | None = None,
    ) -> None:  # fmt: skip
        self._context, self.store, self.mesh, self.count = context, store, mesh, count
        # One rank looks, for a listing may change while others commit.
        missing = context.on_writer(lambda: [group.index for group in store.missing()])
        self.missing = [index for index in missing if turn in (None, store.groups[index].turn)]
        mine = [] if mesh is None else self.missing[mesh.dp_rank :: mesh.dp]
        self.mine = [store.groups[index] for index in mine]
        self._bar = context.console.progress(title, sum(map(count, self.mine)))
        self._advance: Callable[[int], Any] = lambda rows: None

    def __enter__(self) -> Work:
        self._advance = self._bar.__enter__().advance
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def advance(self, rows: int = 1) -> None:
        """So many rows are done; ranks that wait for this one learn that it works."""
        self._advance(rows)
        if self._context.spent is not None:
            self._context.spent.note()
        self._context.mesh.alive()

    def run(
        self,
        groups: Iterable[Group],
        ask: Callable[[Group], Asked],
        call: Callable[[Iterator], Rows],
        provenance: Mapping[str, Any],
    ) -> Iterator[Group]:
        """Sends the inputs of the groups through one call of a backend, which so is as busy at the end of a group as in
        its middle; commits each group as soon as its last row has come, and then yields it.

        Args:
            ask: a group's inputs, each with the ids of the rows that it becomes.
            call: the backend; it takes inputs as it has room for them and gives rows in any order.
            provenance: what the rows say of what made them, besides what they say already.
        """
        under_way: dict[str, Assembly] = {}
        empty: list[Group] = []

        def inputs() -> Iterator[Any]:
            for group in groups:
                asked = ask(group)
                assembly = Assembly(group, [name for _, names in asked for name in names])
                under_way.update(dict.fromkeys(assembly.ids, assembly))
                if not assembly.ids:
                    self.commit(group, [], {})
                    empty.append(group)
                yield from (item for item, _ in asked)

        for number, row in enumerate(call(inputs()), start=1):
            assembly = under_way.pop(row.id, None)
            assert assembly is not None, f"nobody asked for the row {row.id}, or it came twice"
            if isinstance(row, Refusal) and self._context.config.run.strict:
                raise named(row)
            self.advance()
            if assembly.add(row):
                rows = [_made_by(row, provenance) for row in assembly.rows()]
                self.commit(assembly.group, rows, assembly.faulty())
                yield assembly.group
                stopping.heed(self.mesh)
            elif number % stopping.HEED_EVERY == 0:
                stopping.heed(self.mesh)
        assert not under_way, f"{len(under_way)} rows never came, {next(iter(under_way))} is one"
        yield from empty

    def commit(self, group: Group, rows: Sequence[Response], faulty: Mapping[str, RowError]) -> None:
        """Writes a group's rows; what was set aside stands beside them before the group counts as done."""
        if not self.mesh.replica_lead:
            return
        lines = [{"id": name, "reason": why.what, "detail": str(why)} for name, why in faulty.items()]
        self.store.set_aside(group, lines)
        self.store.commit(group, [row.to_row() for row in rows])

    def finish(self, totals: Totals) -> dict[str, Any]:
        """Declares the stage done once every replica has committed; its totals, on every rank."""
        self._context.mesh.meet()
        return self._context.on_writer(lambda: self._count(totals))

    def _count(self, totals: Totals) -> dict[str, Any]:
        store = self.store
        if not store.done:
            counted = totals(store.committed(), dict(store.aside().most_common()))
            there = counted["kept"] + sum(counted["faulty"].values())
            if there != counted["rows_in"]:  # each group was counted when it was committed
                raise StoreError(
                    "rows are missing, or there are too many", where=store.dir, found=f"{there} in all files",
                    expected=counted["rows_in"], way_out="delete this folder and run again to make the stage once more",
                )  # fmt: skip
            store.finish(counted)
        return store.totals


class Assembly:
    """One group while its rows come in."""

    def __init__(self, group: Group, ids: list[str]) -> None:
        self.group, self.ids = group, ids
        self._found: dict[str, Response | Refusal] = {}

    def add(self, row: Response | Refusal) -> bool:
        """Whether the group is whole now."""
        self._found[row.id] = row
        return len(self._found) == len(self.ids)

    def rows(self) -> list[Response]:
        """In the order of the ids."""
        return [row for name in self.ids if isinstance(row := self._found[name], Response)]

    def faulty(self) -> dict[str, RowError]:
        return {name: row.error for name in self.ids if isinstance(row := self._found[name], Refusal)}


def _made_by(row: Response, provenance: Mapping[str, Any]) -> Response:
    return dataclasses.replace(row, provenance={**row.provenance, **provenance})


def named(refusal: Refusal) -> RowError:
    """Why a row was refused, as an error that names it."""
    error = refusal.error
    where = f"row {refusal.id}" if error.where is None else f"row {refusal.id}, {error.where}"
    return RowError(error.what, where=where, found=error.found, expected=error.expected, way_out=error.way_out)
