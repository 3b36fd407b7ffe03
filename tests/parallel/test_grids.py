"""Grids of other shapes beside the job's own: the same numbers, several alive at once, parts of the ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch.distributed as dist
from folders import make_folder, make_tokenizer, small_shape
from ranks import TOPOLOGIES, run_ranks

from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.score import response_log_probs, score
from nemo_sdg.parallel import mesh as meshes
from nemo_sdg.parallel.topology import Grid

IDS = np.random.default_rng(3).integers(6, 384, (2, 40)).tolist()
ROWS = [(ids[:3], ids[3:]) for ids in IDS]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("grids")
    tokenizer = make_tokenizer(root / "t.model")
    make_folder(root / "policy", small_shape(), tokenizer)
    make_folder(root / "reward", small_shape(), tokenizer, reward=True)
    return root


def outputs(mesh, world) -> list[np.ndarray]:
    """Log-probabilities of every token of two rows and the rewards of both; nothing on a rank outside."""
    if mesh is None:
        return []
    policy, _ = load_model(world / "policy", mesh, dtype="fp64")
    reward, tokenizer = load_model(world / "reward", mesh, dtype="fp64", reward=True)
    return [*response_log_probs(policy, mesh, ROWS), score(reward, tokenizer, mesh, IDS)]


@pytest.fixture(scope="module")
def reference(world):
    found = run_ranks(outputs, world)[0]
    assert all(np.ptp(values) > 0.1 for values in found), "values that are all alike would agree by themselves"
    return found


def same(found: list, reference: list) -> int:
    """How many ranks had something, all of it equal to the reference."""
    found = [values for values in found if values]
    for values in found:
        for one, other in zip(values, reference, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-10 if one.dtype == np.float64 else 1e-6)
    return len(found)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_grid_of_its_own_gives_the_numbers_of_the_jobs_grid(name, world, reference):
    """The job itself is laid out as replicas of one rank, so `parallel_state` would cut nothing."""
    tp, pp, dp = TOPOLOGIES[name]
    grid = Grid(tp, pp, dp)

    def beside(job):
        return outputs(meshes.lay(grid, job), world)

    assert same(run_ranks(beside, dp=tp * pp * dp), reference) == tp * pp * dp


def test_two_grids_of_different_shape_alive_at_once_in_one_job(world, reference):
    """Four ranks: the job's TP2 x DP2, a TP2 x PP2 and a PP4; all three models are built before the first runs."""

    def all_three(job):
        grids = [job, meshes.lay(Grid(2, 2, 1), job), meshes.lay(Grid(1, 4, 1), job)]
        loaded = [load_model(world / "policy", mesh, dtype="fp64")[0] for mesh in grids]
        # And they take turns.
        return [response_log_probs(model, mesh, ROWS) for _ in range(2) for mesh, model in zip(grids, loaded)]

    for found in run_ranks(all_three, tp=2, dp=2):
        assert same(found, reference[:2]) == 6


def test_disjoint_grids_work_at_the_same_time(world, reference):
    """Rank 0 alone, ranks 1 and 2 as TP2: each rank is in one of them and none of the other's messages reach it."""

    def apart(job):
        one, two = meshes.lay(Grid(), job), meshes.lay(Grid(tp=2, first=1), job)
        assert (one is None) == (job.rank > 0) and (two is None) == (job.rank == 0)
        mine = one or two
        told = mine.broadcast_object([mine.first, job.rank] if mine.writer else None)
        assert told == [mine.first, mine.first], "the writer of a grid is its own first rank"
        assert mine.broadcast_in_replica(mine.rank if mine.replica_lead else None) == 0
        mine.meet()
        return outputs(mine, world)

    assert same(run_ranks(apart, dp=3), reference) == 3


def test_places_and_groups_are_those_of_the_same_grid_over_all_ranks():
    def place(mesh, groups=("tp_group", "pp_group", "dp_group", "replica_group")):
        at = [mesh.rank, mesh.tp_rank, mesh.dp_rank, mesh.pp_rank, mesh.replica_lead]
        return at + [dist.get_process_group_ranks(getattr(mesh, name)) for name in groups]

    def both(job):
        return place(job), place(meshes.lay(Grid(2, 2, 2), job))

    for job, grid in run_ranks(both, tp=2, pp=2, dp=2):
        assert job == grid
