"""Select: decisions for all rows, counted by reason, and no row lost."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from rounds import context, scored, write_scored

from nemo_sdg.errors import StoreError
from nemo_sdg.records import Decision
from nemo_sdg.stages import select
from nemo_sdg.store import StageStore


def test_every_row_gets_a_decision_and_the_totals_say_why(tmp_path: Path):
    where = context(tmp_path, "select.minimum={helpfulness: 3}", "select.per_prompt=1", "generate.group_size=2")
    rows = [
        scored("a", 0, "5"),
        scored("a", 1, "6", helpfulness=3.0),
        scored("b", 0, "7", helpfulness=2.9),
        scored("c", 0, "8", coherence=math.nan),
        scored("d", 0, " "),
    ]
    write_scored(where, rows)
    totals = select.run(where)
    assert totals == {
        "rows_in": 5,
        "kept": 1,
        "dropped": {
            "not among the best 1 of its prompt": 1,
            "helpfulness below 3": 1,
            "score not finite": 1,
            "empty response": 1,
        },
        "faulty": 0,
    }
    store = StageStore.finished(tmp_path / "run/round-0/decisions")
    decisions = [Decision.from_row(row) for row in store.read()]
    assert [d.id for d in decisions] == [r.id for r in rows] and [d.kept for d in decisions] == [True] + [False] * 4
    assert math.isnan(decisions[3].scalar)
    assert select.run(where) == totals


def test_it_waits_for_a_finished_score_stage_and_keeps_to_its_settings(tmp_path: Path):
    with pytest.raises(StoreError, match="not finished"):
        select.run(context(tmp_path))
    write_scored(context(tmp_path), [scored("a")])
    select.run(context(tmp_path))
    with pytest.raises(StoreError, match="another fingerprint"):
        select.run(context(tmp_path, "select.minimum.helpfulness=1"))
