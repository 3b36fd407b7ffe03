"""Samples that share a row train as if each had a row of its own, under every topology."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ranks import run_ranks

from nemo_sdg.config import Models, Training
from nemo_sdg.models.attention import Segments, attend
from training.test_topologies import weights

SETTINGS = Training(
    steps=4, global_batch_size=8, micro_batch_size=2, max_length=256, learning_rate=2e-3, warmup_steps=1, clip_grad=0.0
)
PACKED = replace(SETTINGS, micro_batch_size=1, packed_sequence_size=256)


def train(mesh, world, out, task, settings, **more):
    from nemo_sdg.training.fit import fit

    return fit(
        task, settings, models=Models(dtype="fp64"), start=world / "base", rows=world / f"{task}.jsonl", out=out, mesh=mesh,
        seed=5, **more,
    )["losses"]  # fmt: skip


@pytest.fixture(scope="module")
def unpacked(world, tmp_path_factory):
    """Losses and trained weights of both tasks on one rank, each sample in a row of its own."""
    root = tmp_path_factory.mktemp("unpacked")
    found = {}
    for task in ("sft", "reward"):
        losses = run_ranks(train, world, root / task, task, SETTINGS)[0]
        found[task] = losses, run_ranks(weights, root / task)[0]
    return found


GRIDS = {
    "one rank": {},
    "TP2": dict(tp=2),
    "TP2, sequence parallel": dict(tp=2, sequence_parallel=True),
    "PP2": dict(pp=2),
    "TP2 PP2": dict(tp=2, pp=2),
    "DP2": dict(dp=2),
}


@pytest.mark.parametrize("task", ["sft", "reward"])
@pytest.mark.parametrize("name", GRIDS)
def test_a_packed_fit_is_an_unpacked_one(world, unpacked, tmp_path, task, name):
    grid = dict(GRIDS[name])
    more = {"sequence_parallel": grid.get("sequence_parallel", False)}
    losses, trained = unpacked[task]
    for found in run_ranks(lambda mesh: train(mesh, world, tmp_path / "out", task, PACKED, **more), **grid):
        assert found == pytest.approx(losses, abs=1e-9)
    result = run_ranks(weights, tmp_path / "out")[0]
    for key in trained:
        np.testing.assert_allclose(result[key], trained[key], rtol=0, atol=1e-9, err_msg=key)


def test_rows_are_shared(world):
    """What the test above compares is packed indeed: fewer than half as many rows."""
    from nemo_sdg.models.tokenizer import Tokenizer
    from nemo_sdg.training.batches import GlobalBatches
    from nemo_sdg.training.samples import read, sft_sample

    rows = read(sft_sample, world / "sft.jsonl", Tokenizer(world / "tokenizer.model"), 256).rows
    made = GlobalBatches(rows, steps=4, global_batch_size=8, seed=5, packed_sequence_size=256)
    assert made.rows_per_step < 4


def test_attention_within_segments():
    """Each sequence attends to itself alone and causally; padding gives 0, and no gradient crosses."""
    draw = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(9, 2, heads, 4, dtype=torch.float64, generator=draw) for heads in (4, 2, 2))
    sizes = ((3, 4), (5,))
    segments = Segments.of(torch.zeros(2, 9, dtype=torch.int64), sizes)
    assert segments.max_seqlen_q == 5
    q.requires_grad_()
    whole = segments.attend(q, k, v)
    assert whole.shape == q.shape and (whole[7:, 0] == 0).all() and (whole[5:, 1] == 0).all()
    for row, begin, end in ((0, 0, 3), (0, 3, 7), (1, 0, 5)):
        parts = [x[begin:end, row : row + 1].permute(1, 2, 0, 3) for x in (q, k, v)]
        assert torch.equal(attend(*parts, None)[0].transpose(0, 1), whole[begin:end, row])
    (grad,) = torch.autograd.grad(whole[4, 0].sum(), q)
    assert (grad[4, 0] != 0).any() and (grad[[0, 1, 2, 3, 5, 6, 7, 8], 0] == 0).all() and (grad[:, 1] == 0).all()
