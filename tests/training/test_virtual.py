"""Virtual pipeline stages: each stage holds several chunks of layers in turn with the others, nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ranks import run_ranks

from nemo_sdg.errors import TopologyError
from training import worlds
from training.restarts import SETTINGS, fit, killed, recorded, same, straight_settings

PLAIN = replace(SETTINGS, clip_grad=0.0)
PACKED = replace(PLAIN, micro_batch_size=1, packed_sequence_size=256)
VIRTUAL = dict(virtual_stages=2)


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """Losses on one rank, by task."""
    root = tmp_path_factory.mktemp("alone")
    settings = straight_settings(PLAIN)
    return {task: run_ranks(fit, world, root / task, task, settings)[0]["losses"] for task in ("sft", "reward", "dpo")}


def virtual(mesh, world, out, task, settings, kill_at=None):
    from nemo_sdg.training import fit as module

    built = []
    fill = module._Fit._fill
    module._Fit._fill = lambda job, model: (built.append(len(model.decoder.layers)), fill(job, model))
    found = recorded(mesh, world, out, task, settings, kill_at, **VIRTUAL)
    assert built == [1, 1], "two chunks of one layer each"
    return found


@pytest.mark.parametrize("settings", [PLAIN, PACKED], ids=["a row each", "packed"])
@pytest.mark.parametrize("task", ["sft", "reward", "dpo"])
def test_losses_are_those_of_one_rank(world, alone, tmp_path, task, settings):
    for found in run_ranks(virtual, world, tmp_path / "out", task, straight_settings(settings), pp=2):
        assert found["losses"] == pytest.approx(alone[task], abs=1e-9)


def test_it_goes_on_to_the_bit_and_elsewhere(world, alone, tmp_path):
    straight = run_ranks(virtual, world, tmp_path / "straight", "reward", straight_settings(PLAIN), pp=2)
    killed(virtual, world, tmp_path / "out", "reward", PLAIN, 5, timeout_s=20, pp=2)
    resumed = run_ranks(virtual, world, tmp_path / "out", "reward", replace(PLAIN, steps=8), pp=2)
    for one, other in zip(straight, resumed):
        same(one, other, since=3)
    killed(virtual, world, tmp_path / "moved", "reward", PLAIN, 5, timeout_s=20, pp=2)
    losses = run_ranks(fit, world, tmp_path / "moved", "reward", PLAIN, tp=2)[0]["losses"]
    assert losses == pytest.approx(alone["reward"], abs=1e-9)


def test_it_comes_from_elsewhere(world, alone, tmp_path):
    killed(recorded, world, tmp_path / "out", "sft", PLAIN, 5, timeout_s=20, dp=2)
    found = run_ranks(virtual, world, tmp_path / "out", "sft", PLAIN, pp=2)[1]
    assert found["losses"] == pytest.approx(alone["sft"], abs=1e-9) and sorted(found["lines"])[0] == 3


def evaluated(mesh, world, virtual_stages):
    """Token log-probabilities that `evaluate` finds in batches of several widths, by line."""
    from nemo_sdg.checkpoints.folder import ModelFolder
    from nemo_sdg.checkpoints.load import fill
    from nemo_sdg.models import nemotron
    from nemo_sdg.models.tokenizer import Tokenizer
    from nemo_sdg.parallel import device
    from nemo_sdg.training.batches import collate
    from nemo_sdg.training.forward import evaluate, interleaved
    from nemo_sdg.training.objectives import label_log_probs
    from nemo_sdg.training.samples import read, sft_sample

    folder = ModelFolder.open(world / "base")
    with device.cuda_calls_on_cpu(), interleaved(virtual_stages):
        config = nemotron.transformer_config(
            folder.shape, dtype=torch.float64, pp=mesh.pp, virtual_stages=virtual_stages
        )
        config.overlap_p2p_comm, config.batch_p2p_comm = virtual_stages > 1, virtual_stages == 1
        chunks = []
        for stage in range(virtual_stages):
            first, last = mesh.first_stage and stage == 0, mesh.last_stage and stage == virtual_stages - 1
            vp_stage = stage if virtual_stages > 1 else None
            chunks.append(nemotron.build(config, folder.shape, pre_process=first, post_process=last, vp_stage=vp_stage))
        fill(chunks, folder, mesh)
        rows = read(sft_sample, world / "sft.jsonl", Tokenizer(folder.tokenizer, folder.path), 256).rows
        batches = [collate([[row] for row in rows[i : i + 2]], 160 if i < 6 else 168) for i in range(0, 10, 2)]

        def measure(batch, logits):
            return label_log_probs(batch, logits).sum(dim=1)

        found = evaluate(chunks, batches, measure, reward=False)
    return [one.tolist() for one in found]


def test_evaluation_over_virtual_stages(world):
    """Five batches, three of one width and two of another, where two take turns."""
    expected = run_ranks(evaluated, world, 1)[0]
    first, last = run_ranks(evaluated, world, 2, pp=2)
    assert first == [] and len(last) == 5
    for one, other in zip(last, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-9)


def refused(mesh, world, out):
    messages = []
    for more in (dict(virtual_stages=3), dict(virtual_stages=2, settings=replace(PLAIN, global_batch_size=6))):
        with pytest.raises(TopologyError) as caught:
            fit(mesh, world, out, "sft", **more)
        messages.append(str(caught.value))
    return messages


def test_what_cannot_be_cut_is_refused(world, tmp_path):
    layers, batch = run_ranks(refused, world, tmp_path / "out", pp=2)[0]
    assert "3 virtual stages for stages of 2 layers" in layers
    assert "a multiple of 4; set sft.global_batch_size=8" in batch


def _after_others(_):
    """What NeMo notes of our objects in a process where it has made objects of their parents before."""
    import torch
    from nemo.collections import llm
    from nemo.lightning.io import mixin

    from nemo_sdg.training.finetuned import FineTuned
    from nemo_sdg.training.model import NemotronModule, config_of

    for parent in (llm.NemotronConfig, llm.NemotronModel, NemotronModule):
        mixin._io_wrap_init(parent)
    config = config_of(worlds.SHAPE, dtype=torch.float32, reward=False, head_bias=False, spec="local")
    module = FineTuned(config, task="sft", settings={"steps": 3}, start="base", seed=7)
    return config.__io__.num_layers, module.__io__.task, module.__io__.seed, module.__io__.config.num_layers


def test_what_an_object_is_made_of_is_noted_whatever_was_made_before(world):
    assert run_ranks(_after_others)[0] == (4, "sft", 7, 4)
