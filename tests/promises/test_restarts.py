"""Fits that are killed: to the bit under the same topology, within 1e-9 under another, and 100 kills while saving."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from ranks import TOPOLOGIES, run_ranks

from training.conftest import world  # noqa: F401  (the fixture)
from training.restarts import KINDS, SETTINGS, fit, kill_while_saving, killed, recorded, same, straight_settings

STEPS = replace(SETTINGS, steps=20, restart_every=10)
KILLS = 100
GRIDS = {name: dict(tp=tp, pp=pp, dp=dp) for name, (tp, pp, dp) in TOPOLOGIES.items()}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("task", KINDS)
def test_twenty_steps_straight_are_ten_a_kill_and_ten(world, tmp_path, task, name):  # noqa: F811
    grid = GRIDS[name]
    straight = run_ranks(recorded, world, tmp_path / "straight", task, straight_settings(STEPS), **grid)
    killed(recorded, world, tmp_path / "out", task, STEPS, 13, timeout_s=30, **grid)
    for one, other in zip(straight, run_ranks(recorded, world, tmp_path / "out", task, STEPS, **grid), strict=True):
        same(one, other, since=10)
    print(f"\nBAR 5: {task} under {name}: weights, moments, random state, losses and rows of 10 steps to the bit")


@pytest.mark.parametrize("task", KINDS)
def test_from_each_topology_to_each_other(world, tmp_path, task):  # noqa: F811
    steps = replace(STEPS, clip_grad=0.0)
    straight = run_ranks(fit, world, tmp_path / "straight", task, straight_settings(steps))[0]["losses"]
    worst = 0.0
    pairs = list(itertools.permutations(GRIDS, 2))
    for number, (first, then) in enumerate(pairs):
        out = tmp_path / str(number)
        killed(recorded, world, out, task, steps, 13, timeout_s=30, **GRIDS[first])
        resumed = run_ranks(fit, world, out, task, steps, **GRIDS[then])[0]["losses"]
        assert len(resumed) == 20
        worst = max(worst, *(abs(a - b) for a, b in zip(straight, resumed)))
        assert worst < 1e-9, (first, then)
    print(f"\nBAR 5: {task}: {len(pairs)}/{len(pairs)} moves to another topology, losses within {worst:.1e} / 1e-9")


def test_a_hundred_kills_while_saving(world, tmp_path):  # noqa: F811
    found = kill_while_saving(world, tmp_path / "out", KILLS, random.Random(8))
    print(f"\n{found}")
    print(f"BAR 8: {KILLS}/{KILLS} kills while saving: the latest restart point loads, losses as undisturbed")
