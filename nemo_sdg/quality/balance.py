"""No group of rows (a topic, a kind) may be more than its share of what is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np


def room(counts: np.ndarray, share: float) -> np.ndarray:
    """How many rows each group may keep so that none is more than `share` of all that are kept, as many as possible.

    Let f(N) = sum of min(count, floor(share N)) over the groups. If N rows are kept and no group is above its share,
    each group has at most floor(share N) of them, so N <= f(N). f never falls as N grows. Begin with N = all rows and
    go on with N := f(N): N never rises, and by induction it stays at or above every M with M <= f(M), since N >= M
    gives f(N) >= f(M) >= M. Whole numbers cannot fall for ever, so it ends at N = f(N): that is the largest such
    number, and there each group has min(count, floor(share N)) rows, which are N in all. It is 0 when there are fewer
    groups than 1 / share.
    """
    total = int(counts.sum())
    while True:
        most = np.minimum(counts, _most(share, total))
        if int(most.sum()) == total:
            return most
        total = int(most.sum())


def within_target(
    groups: Mapping[str, np.ndarray], shares: Mapping[str, float], best_first: np.ndarray, target: int | None
) -> tuple[dict[int, str], np.ndarray]:
    """The rows that must go, and those that may stay, if the target is reached: the best ones, of which no group is
    more than its share of the target. To cut what is balanced without it would leave the best groups alone.

    A group has room for floor(share N) rows of a target N. Where all groups of a column together have less than N by
    that rounding alone (G groups, G share >= 1, G floor(share N) < N), the N - G floor(share N) rows that remain go one
    each to the groups whose best rows want the room first: two topics of half each keep 3 and 2 of 5.

    Args:
        groups: by column, the number of each row's group, of all rows that there are: a group that has no row among
            `best_first` yet counts, for more candidates may bring one.
    """
    if target is None or not shares:
        return {}, best_first
    room, remainder = {}, {}
    for name, share in shares.items():
        count, most = int(groups[name].max(initial=0)) + 1, _most(share, target)
        room[name] = [most] * count
        remainder[name] = max(0, target - count * most) if _most(share, count) >= 1 else 0
    gone, left = {}, []
    for row in best_first.tolist():
        if len(left) == target:
            break
        at = {name: int(groups[name][row]) for name in shares}
        full = next((name for name in shares if room[name][at[name]] < (0 if remainder[name] else 1)), None)
        if full is None:
            left.append(row)
            for name in shares:
                room[name][at[name]] -= 1
                remainder[name] -= room[name][at[name]] < 0
        else:
            gone[row] = full
    return gone, np.array(left, best_first.dtype)


def _most(share: float, total: int) -> int:
    return math.floor(share * total + 1e-9)  # 0.29 x 100 is 28.999999999999996


def over_share(groups: Mapping[str, np.ndarray], shares: Mapping[str, float], best_first: np.ndarray) -> dict[int, str]:
    """The rows that must go, each with the column that it goes for; the best of each group stay.

    Columns are taken in turn until none takes a row any more: rows that go for one column shrink the whole that
    another column's share is of. What is left holds every share.

    Args:
        groups: by column, the number of each row's group; rows without the column are a group of their own.
        best_first: the rows that are there, in the order of their rank.
    """
    gone: dict[int, str] = {}
    left = best_first
    while True:
        before = len(left)
        for column, share in shares.items():
            mine = groups[column][left]
            most = room(np.bincount(mine), share)
            # Each row's place within its group: a stable sort puts the groups together and keeps the order within.
            together = np.argsort(mine, kind="stable")
            counts = np.bincount(mine)
            places = np.empty(len(mine), np.int64)
            places[together] = np.arange(len(mine)) - np.repeat(np.cumsum(counts) - counts, counts)
            stays = places < most[mine]
            gone.update(dict.fromkeys(left[~stays].tolist(), column))
            left = left[stays]
        if len(left) == before:
            return gone
