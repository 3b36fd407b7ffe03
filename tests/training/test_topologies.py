"""Fits on uneven pipeline stages, on a padded vocabulary, and of a reward head with a bias."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from ranks import run_ranks

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import Models, Training
from nemo_sdg.parallel.lone import lone_rank
from nemo_sdg.parallel.topology import Grid
from training import worlds

SETTINGS = Training(
    steps=4, global_batch_size=8, micro_batch_size=2, max_length=256, learning_rate=2e-3, warmup_steps=1, clip_grad=0.2
)
PADDED = replace(worlds.SHAPE, vocab_size=131)


@pytest.fixture(scope="module")
def starts(world, tmp_path_factory):
    """A language model of an odd vocabulary, and a reward model whose head has a bias."""
    root = tmp_path_factory.mktemp("starts")

    def write(mesh):
        worlds.write_start(mesh, root / "sft", world / "tokenizer.model", shape=PADDED)
        worlds.write_start(mesh, root / "reward", world / "tokenizer.model", shape=PADDED, reward=True, head_bias=True)

    run_ranks(write)
    return root


def train(mesh, world, starts, out, task, settings=SETTINGS, **more):
    from nemo_sdg.training.fit import fit

    start, rows = starts / task, world / f"{task}.jsonl"
    models = Models(dtype="fp64")
    return fit(task, settings, models=models, start=start, rows=rows, out=out, mesh=mesh, seed=5, **more)["losses"]


def weights(mesh, folder):
    from nemo_sdg.engine.load import load_model

    model, _ = load_model(folder, mesh, dtype="fp64", reward=ModelFolder.open(folder).is_reward)
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


@pytest.fixture(scope="module")
def alone(world, starts):
    """Losses and trained weights of both tasks on one rank."""
    found = {}
    for task in ("sft", "reward"):
        out = starts / f"{task}-alone"
        found[task] = run_ranks(train, world, starts, out, task)[0], run_ranks(weights, out)[0]
    return found


GRIDS = {
    "uneven": ("sft", dict(pp=2, first_stage_layers=1)),
    "uneven, both ends": ("reward", dict(pp=3, first_stage_layers=1, last_stage_layers=1)),
    "padded": ("sft", dict(tp=2)),
    "padded, uneven": ("reward", dict(tp=2, pp=2, last_stage_layers=3)),
    "padded, under sequence parallelism": ("reward", dict(tp=2, sequence_parallel=True)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_losses_and_weights_are_those_of_one_rank(world, starts, alone, tmp_path, name):
    task, grid = GRIDS[name]
    expected, trained = alone[task]
    more = {"sequence_parallel": grid.get("sequence_parallel", False)}
    for found in run_ranks(lambda mesh: train(mesh, world, starts, tmp_path / "out", task, **more), **grid):
        assert found == pytest.approx(expected, abs=1e-9)
    contents = ModelFolder.open(tmp_path / "out").contents
    assert contents.shape == PADDED and contents.head_bias == (task == "reward")
    result = run_ranks(weights, tmp_path / "out")[0]
    assert result.keys() == trained.keys()
    for key in result:
        np.testing.assert_allclose(result[key], trained[key], rtol=0, atol=1e-9, err_msg=key)


def test_the_bias_of_the_head_is_trained(starts, alone):
    before = run_ranks(weights, starts / "reward")[0]["rm_head.bias"]
    after = alone["reward"][1]["rm_head.bias"]
    assert (before == 0).all() and (after[4:] != 0).all() and (after[:4] == 0).all()  # outputs 0 to 3 have no labels


def test_what_was_trained_under_another_grid_runs_under_this_one(starts, alone):
    """The padding of TP2 stays in TP2: the folder of one rank fills two, and the reverse was loaded above."""
    _, trained = alone["sft"]
    for rank, found in enumerate(run_ranks(weights, starts / "sft-alone", tp=2)):
        held = 66 - rank
        shard = found["output_layer.weight"]
        assert (shard[:held] == trained["output_layer.weight"][rank * 66 :][:held]).all() and (shard[held:] == 0).all()


def killed(mesh, world, starts, out):
    def stop(step, loss):
        if step == 3:
            os._exit(0)  # as a kill would: nothing is tidied up

    train(mesh, world, starts, out, "sft", replace(SETTINGS, restart_every=2), on_step=stop if mesh.writer else None)


@pytest.mark.parametrize("first, then", [(dict(tp=2, pp=2, first_stage_layers=1), {}), ({}, dict(tp=2))], ids=str)
def test_a_fit_goes_on_with_another_padding(world, starts, alone, tmp_path, first, then):
    with pytest.raises(AssertionError, match="rank 0 ended without a result"):
        run_ranks(killed, world, starts, tmp_path / "out", timeout_s=5, **first)
    assert (tmp_path / ".out.fit" / "step-00000002").is_dir()
    resumed = run_ranks(train, world, starts, tmp_path / "out", "sft", **then)[0]
    assert resumed == pytest.approx(alone["sft"][0], abs=1e-9)


def nemo_chunks(_):
    """(embedding, output layer, layers) of each virtual stage that NeMo's config builds, by pipeline rank."""
    import torch

    from nemo_sdg.training.model import config_of

    found = []
    for pp_rank in range(2):
        with lone_rank(Grid(pp=2), pp_rank, virtual_stages=2):
            config = config_of(worlds.SHAPE, dtype=torch.float32, reward=False, head_bias=False, spec="local")
            config.pipeline_model_parallel_size = config.virtual_pipeline_model_parallel_size = 2
            for stage in range(2):
                model = config.configure_model(None, vp_stage=stage)
                layers = [layer.layer_number for layer in model.decoder.layers]
                found.append((model.pre_process, model.post_process, layers))
    return found


def test_nemo_builds_virtual_stages(world):
    assert run_ranks(nemo_chunks)[0] == [
        (True, False, [1]), (False, False, [3]), (False, False, [2]), (False, True, [4])
    ]  # fmt: skip
