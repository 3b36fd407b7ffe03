"""Shares of what is kept: known answers, and that no larger set holds them."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import row

from nemo_sdg.config import Select
from nemo_sdg.quality import decide
from nemo_sdg.quality.balance import room, within_target


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
        ([29, 29, 29, 13], 0.29, [29, 29, 29, 13]),  # 0.29 x 100 is 28.999999999999996
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
    rows = [row(f"a{n}", f"a {n}", "x", scalar=4.0, topic="a") for n in range(8)]
    rows += [row(f"b{n}", f"b {n}", "x", scalar=3.0, topic="b") for n in range(8)]
    told = decide(rows, Select(minimum={}, balance={"topic": 0.5}, target=4))
    assert [d.extra["topic"] for d in told if d.kept] == ["a", "a", "b", "b"]
    assert {d.reason for d in told} == {None, "topic above its share of 0.5", "beyond the target of 4"}
    odd = decide(rows, Select(minimum={}, balance={"topic": 0.5}, target=5))
    assert [d.extra["topic"] for d in odd if d.kept] == ["a", "a", "a", "b", "b"]
    few = decide(rows[4:], Select(minimum={}, balance={"topic": 0.4}, target=10))
    assert sum(d.kept for d in few) == 0  # two topics cannot hold 0.4 each
    assert sum(d.kept for d in decide(rows, Select(minimum={}, balance={"topic": 0.5}, target=99))) == 16


def kept_of(counts: dict[str, int], target: int, **shares: float) -> dict[str, int]:
    """How many rows of each topic are kept; those of an earlier one are better, and of each topic one more is poor."""
    rows = [
        row(f"{topic}{n}", f"{topic} {n}", "x", scalar=9.0 - place if n else 0.0, topic=topic, kind="k" if n % 2 else "l")
        for place, (topic, count) in enumerate(counts.items()) for n in range(count + 1)
    ]  # fmt: skip
    made = decide(rows, Select(minimum={"helpfulness": 1.0}, weights={"helpfulness": 1.0}, balance=shares, target=target))
    return dict(Counter(d.extra["topic"] for d in made if d.kept))


@pytest.mark.parametrize(
    "counts, target, shares, expected",
    [
        ({"a": 9, "b": 9}, 5, {"topic": 0.5}, {"a": 3, "b": 2}),
        ({"a": 9, "b": 9}, 1, {"topic": 0.5}, {"a": 1}),
        ({"a": 9, "b": 9, "c": 9}, 5, {"topic": 0.34}, {"a": 2, "b": 2, "c": 1}),
        ({"a": 9, "b": 9, "c": 9}, 4, {"topic": 0.34}, {"a": 2, "b": 1, "c": 1}),
        ({"a": 1, "b": 9, "c": 9}, 5, {"topic": 0.34}, {"a": 1, "b": 2, "c": 2}),
        # Three topics can hold the half each of five without a remainder.
        ({"a": 9, "b": 9, "c": 9}, 5, {"topic": 0.5}, {"a": 2, "b": 2, "c": 1}),
        # The third has no good row yet, but may have: only what is a half each of what is there.
        ({"a": 9, "b": 9, "c": 0}, 5, {"topic": 0.5}, {"a": 2, "b": 2}),
        # Too few rows, not too rough a rounding: the shares are of what is there.
        ({"a": 9, "b": 1}, 5, {"topic": 0.5}, {"a": 1, "b": 1}),
        ({"a": 9, "b": 9}, 5, {"topic": 0.4}, {}),
        ({"a": 9, "b": 9}, 5, {"topic": 0.5, "kind": 0.5}, {"a": 3, "b": 2}),
        ({"a": 9, "b": 9}, 5, {"topic": 0.5, "kind": 0.9}, {"a": 3, "b": 2}),
    ],
)
def test_a_target_that_the_shares_do_not_divide_is_reached(counts, target, shares, expected):
    assert kept_of(counts, target, **shares) == expected


@given(st.integers(1, 5), st.integers(1, 40), st.data())
def test_enough_rows_of_groups_that_can_hold_the_shares_always_reach_the_target(count: int, target: int, data):
    share = data.draw(st.floats(1 / count, 0.999)) if count > 1 else 0.999
    groups = {"topic": np.arange(count * target, dtype=np.int32) % count}
    best_first = np.array(data.draw(st.permutations(range(count * target))), np.int64)
    _, left = within_target(groups, {"topic": share}, best_first, target)
    most = int(np.bincount(groups["topic"][left]).max(initial=0))
    assert len(left) == (target if count > 1 else _floor(share * target)) and most < share * target + 1
    if count * _floor(share * target) >= target:
        assert most <= share * target + 1e-9


def _floor(value: float) -> int:
    return math.floor(value + 1e-9)
