"""Twenty steps of DPO and RPO give the same losses and weights on any ranks, packed or not, however they are accumulated."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ranks import run_ranks

from training.conftest import world  # noqa: F401  (a fixture)
from training.test_preference import BOTH, GRIDS, SETTINGS, WAYS, assert_equal, train
from training.test_topologies import weights

LONG = replace(SETTINGS, steps=20)


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):  # noqa: F811
    root = tmp_path_factory.mktemp("alone")
    found = {}
    for name in BOTH:
        losses = run_ranks(train, world, root / name, replace(LONG, objective=name))[0]
        found[name] = losses, run_ranks(weights, root / name)[0]
    return found


@pytest.mark.parametrize("objective", BOTH)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("grid", GRIDS)
def test_twenty_steps(world, alone, tmp_path, objective, grid, way):  # noqa: F811
    settings, grid = replace(LONG, objective=objective, **WAYS[way]), GRIDS[grid]
    more = {"sequence_parallel": grid.get("sequence_parallel", False)}
    for losses in run_ranks(lambda mesh: train(mesh, world, tmp_path / "out", settings, **more), **grid):
        assert_equal((losses, {}), (alone[objective][0], {}))
    assert_equal((losses, run_ranks(weights, tmp_path / "out")[0]), alone[objective])
