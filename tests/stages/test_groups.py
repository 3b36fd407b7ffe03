"""Row groups: what is set aside stays counted over restarts, and a torn part is told to every rank."""

from __future__ import annotations

import pytest
from ranks import run_ranks

from nemo_sdg.config import RunConfig
from nemo_sdg.console import Console
from nemo_sdg.errors import RowError, StoreError
from nemo_sdg.records import Response
from nemo_sdg.stages import groups
from nemo_sdg.stages.context import Context
from nemo_sdg.store import Run, StageStore

ASKED = ({"role": "user", "content": "a"},)
ROWS = [Response(f"p{i}#0", f"p{i}", 0, ASKED, "b") for i in range(6)]


def totals(rows, faulty):
    return {"rows_in": 6, "kept": len(list(rows)), "dropped": {}, "faulty": faulty}


def do(mesh, out, faulty, only=None):
    """Six rows in three groups; of those in `faulty` the reason is given, groups beyond `only` are left undone."""
    with Run.open(out, RunConfig(), writer=mesh.writer) as run:
        context = Context(RunConfig(), run, 0, mesh, Console(speaks=False))
        store = StageStore(out / "rows", "f" * 16, rows=6, group_size=2)
        with groups.Work(context, store, "t", mesh=mesh, count=lambda group: 2) as work:
            for group in work.mine[:only]:
                rows = ROWS[group.start : group.stop]
                bad = {row.id: RowError("too long", found="9") for row in rows if row.id in faulty}
                work.commit(group, [row for row in rows if row.id not in bad], bad)
        return None if only is not None else work.finish(totals)


@pytest.mark.parametrize("topology", [{}, {"dp": 2}, {"dp": 4}, {"tp": 2, "pp": 2}], ids=str)
def test_groups_are_shared_out_and_counted(tmp_path, topology):
    """Four replicas have fewer groups than ranks."""
    results = run_ranks(do, tmp_path / "run", {"p1#0", "p4#0"}, **topology)
    assert results == [{"rows_in": 6, "kept": 4, "dropped": {}, "faulty": {"too long": 2}}] * len(results)
    assert [row["id"] for row in StageStore.finished(tmp_path / "run/rows").read()] == ["p0#0", "p2#0", "p3#0", "p5#0"]


def test_faulty_rows_of_an_attempt_that_was_killed_are_not_counted(tmp_path):
    def attempt(mesh):
        do(mesh, tmp_path / "run", {"p0#0"}, only=1)
        next((tmp_path / "run/rows").glob("part-*")).unlink()  # killed before its rows were committed

    run_ranks(attempt)
    assert len(list((tmp_path / "run/rows").glob("faulty-00000-n1-*.jsonl"))) == 1
    assert run_ranks(do, tmp_path / "run", set())[0] == {"rows_in": 6, "kept": 6, "dropped": {}, "faulty": {}}


def test_rows_that_come_in_any_order_are_written_in_their_own(tmp_path):
    def all_at_once(mesh, order):
        out = tmp_path / order.__name__
        with Run.open(out, RunConfig(), writer=mesh.writer) as run:
            context = Context(RunConfig(), run, 0, mesh, Console(speaks=False))
            store = StageStore(out / "rows", "f" * 16, rows=6, group_size=2)

            def ask(group):
                return [(row, [row.id]) for row in ROWS[group.start : group.stop]]

            with groups.Work(context, store, "t", mesh=mesh, count=lambda group: 2) as work:
                ended = [group.index for group in work.run(work.mine, ask, lambda rows: order(list(rows)), {})]
            return ended, work.finish(totals)["kept"]

    assert run_ranks(all_at_once, list)[0] == ([0, 1, 2], 6) and run_ranks(all_at_once, reversed)[0] == ([2, 1, 0], 6)
    for folder in ("list", "reversed"):
        rows = StageStore.finished(tmp_path / folder / "rows").read()
        assert [row["id"] for row in rows] == [row.id for row in ROWS]


def test_a_torn_part_is_told_to_every_rank(tmp_path):
    run_ranks(do, tmp_path / "run", set(), 1)
    part = next((tmp_path / "run/rows").glob("part-*"))
    part.write_bytes(part.read_bytes()[:-5])

    def refused(mesh):
        with pytest.raises(StoreError, match="torn or altered") as error:
            do(mesh, tmp_path / "run", set())
        return str(error.value)

    first, second = run_ranks(refused, dp=2)
    assert first == second and part.name in first


def test_one_rank_of_a_replica_writes(tmp_path, monkeypatch):
    written = []
    commit = StageStore.commit
    monkeypatch.setattr(
        StageStore, "commit", lambda self, group, rows: (written.append(group.index), commit(self, group, rows))
    )

    def indices(mesh):
        do(mesh, tmp_path / "run", set())
        return written

    assert run_ranks(indices, tp=2, pp=2) == [[], [], [0, 1, 2], []]  # tp 0 of the last stage
