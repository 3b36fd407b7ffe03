from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from nemo_sdg.parallel.mesh import alone
from nemo_sdg.parallel.random import row_uniforms


def place(mesh):
    return {
        "at": (mesh.tp_rank, mesh.dp_rank, mesh.pp_rank),
        "lead": mesh.replica_lead,
        "sent": mesh.broadcast_object({"a": [1, "x"]} if mesh.writer else None),
    }


def test_the_grid_of_eight_ranks():
    ranks = run_ranks(place, tp=2, pp=2, dp=2)
    assert [r["at"] for r in ranks] == [(t, d, p) for p in range(2) for d in range(2) for t in range(2)]
    assert [i for i, r in enumerate(ranks) if r["lead"]] == [4, 6], "one lead per replica: tp 0 of the last stage"
    assert all(r["sent"] == {"a": [1, "x"]} for r in ranks)


def test_streams_belong_to_rows():
    one = row_uniforms(1, "a", 0, 50)
    assert (one[:20] == row_uniforms(1, "a", 0, 20)).all(), "a longer stream begins with the shorter one"
    assert 0 <= one.min() and one.max() < 1 and 0.3 < one.mean() < 0.7
    others = row_uniforms(2, "a", 0, 50), row_uniforms(1, "b", 0, 50), row_uniforms(1, "a", 1, 50)
    for other in (*others, row_uniforms(1, "a", 0, 50, 1)):
        assert not (one == other).any()


def test_streams_never_change():
    """Known numbers: a run made with one version continues with the next."""
    assert row_uniforms(1234, "prompt", 3, 3).tolist() == KNOWN


KNOWN = [0.36550002066915, 0.9951853156140849, 0.7562677413862926]


def waits_for_a_stalled_rank(mesh):
    if mesh.rank == 1:
        time.sleep(7)
        return None
    started = time.monotonic()
    for group in (mesh.tp_group, dist.group.WORLD):
        with pytest.raises(RuntimeError, match="(?i)timed out|timeout"):
            dist.broadcast(torch.zeros(1), src=1, group=group)
    return time.monotonic() - started


def test_a_stalled_rank_is_given_up_after_our_timeout():
    """Also in megatron's subgroups; gloo's own default would be 30 minutes."""
    waited = run_ranks(waits_for_a_stalled_rank, tp=2, timeout_s=2)[0]
    assert 2 < waited < 6.5


def meets(mesh, slow_works):
    """Rank 1 works three timeouts long, in small steps."""
    if mesh.rank == 1:
        for _ in range(12):
            time.sleep(0.5)
            if slow_works:
                mesh.alive()
    started = time.monotonic()
    try:
        mesh.meet()
    except RuntimeError as error:
        return type(error).__name__, time.monotonic() - started
    return time.monotonic() - started


def test_a_slow_replica_that_says_it_works_is_waited_for():
    waited = run_ranks(meets, True, dp=2, timeout_s=2)
    assert waited[0] > 4 and waited[1] < 2


def alone_and_alive(mesh):
    """A phase of one rank tells the whole job that it works; the count that the others look at."""
    mesh.barrier()
    if mesh.writer:
        alone(mesh).alive()
    mesh.barrier()
    return dist.distributed_c10d._get_default_store().add("nemo_sdg/alive", 0)


def test_a_phase_of_one_rank_says_to_the_job_that_it_works():
    assert run_ranks(alone_and_alive, dp=2) == [1, 1]


def test_a_silent_one_is_given_up_after_one_timeout():
    name, waited = run_ranks(meets, False, dp=2, timeout_s=2)[0]
    assert name == "LostPeer" and 2 < waited < 3.9
