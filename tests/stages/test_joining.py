"""What belongs together comes together, with its last row, and nothing is held longer."""

from __future__ import annotations

from nemo_sdg.stages.joining import Joined


def test_rows_come_together_with_the_last_of_their_key_and_are_held_no_longer():
    rows = ["a1", "a2", "b1", "c1", "b2", "c2", "b3"]
    together = Joined(row[0] for row in rows)
    found, held = [], []
    for row in rows:
        found.append(together.add(row[0], row))
        held.append(len(together))
    assert found == [None, ["a1", "a2"], None, None, None, ["c1", "c2"], ["b1", "b2", "b3"]]
    assert held == [1, 0, 1, 2, 3, 2, 0]
