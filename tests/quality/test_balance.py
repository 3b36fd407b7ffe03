"""Shares of what is kept: known answers, and that no larger set holds them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import row

from nemo_sdg.config import Select
from nemo_sdg.quality import decide
from nemo_sdg.quality.balance import room


@pytest.mark.parametrize(
    "counts, share, expected",
    [
        ([100, 3, 3], 0.5, [6, 3, 3]),
        ([10, 10, 10, 10], 0.25, [10, 10, 10, 10]),
        ([10, 1], 0.5, [1, 1]),
        ([10], 0.5, [0]),
        ([10, 10], 0.3, [0, 0]),
        ([29, 71], 0.71, [29, 71]),
        ([100, 100, 100, 29], 0.29, [64, 64, 64, 29]),
        ([], 0.5, []),
    ],
)
def test_known_rooms(counts: list[int], share: float, expected: list[int]):
    assert room(np.array(counts, int), share).tolist() == expected


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.floats(0.05, 0.95))
def test_no_group_is_above_its_share_and_no_larger_set_is_possible(counts: list[int], share: float):
    made = room(np.array(counts), share)
    assert all(0 <= m <= c for m, c in zip(made, counts)) and (made <= share * made.sum() + 1e-6).all()
    possible = itertools.product(*(range(count + 1) for count in counts))
    best = max(sum(some) for some in possible if all(one <= share * sum(some) + 1e-9 for one in some))
    assert made.sum() == best


def test_the_best_of_a_group_stay_and_rows_without_the_column_are_one_group():
    rows = [row(f"a{n}", "q", f"x{n}", scalar=float(n), topic="sea") for n in range(6)]
    rows += [row("b", "q", "y", topic="sky"), row("c", "q", "z"), row("d", "q", "w")]
    decisions = decide(rows, Select(minimum={}, weights={"helpfulness": 1.0}, balance={"topic": 0.5}))
    assert [d.prompt_id for d in decisions if d.kept] == ["a3", "a4", "a5", "b", "c", "d"]
    assert {d.reason for d in decisions if not d.kept} == {"topic above its share of 0.5"}


def test_several_columns_hold_at_once():
    rows = [
        row(f"{topic}{kind}{n}", "q", f"{topic}{kind}{n}", scalar=float(n), topic=topic, kind=kind)
        for topic, kind, count in (("s", "k", 20), ("s", "l", 3), ("t", "k", 5), ("t", "l", 2), ("u", "m", 4))
        for n in range(count)
    ]
    decisions = decide(rows, Select(minimum={}, balance={"topic": 0.5, "kind": 0.6}))
    left = [d for d in decisions if d.kept]
    assert left
    for column, share in (("topic", 0.5), ("kind", 0.6)):
        groups = [d.extra[column] for d in left]
        assert max(map(groups.count, groups)) <= share * len(left)


def test_the_target_takes_the_best_and_leaves_no_group_above_its_share_of_it():
    """The eight best are of one topic; cut at four after balancing, only they would be left."""
    rows = [row(f"{topic}{n}", f"{topic} {n}", "x", scalar=4.0 - (topic == "b"), topic=topic) for topic in "ab" for n in range(8)]
    told = decide(rows, Select(minimum={}, balance={"topic": 0.5}, target=4))
    assert [d.extra["topic"] for d in told if d.kept] == ["a", "a", "b", "b"]
    assert {d.reason for d in told} == {None, "topic above its share of 0.5", "beyond the target of 4"}
    odd = decide(rows, Select(minimum={}, balance={"topic": 0.5}, target=5))
    assert sum(d.kept for d in odd) == 4  # of five, one topic would have three
    few = decide(rows[4:], Select(minimum={}, balance={"topic": 0.4}, target=10))
    assert sum(d.kept for d in few) == 0  # two topics cannot hold 0.4 each
    assert sum(d.kept for d in decide(rows, Select(minimum={}, balance={"topic": 0.5}, target=99))) == 16
