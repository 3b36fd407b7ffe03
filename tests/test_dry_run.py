"""`run --dry-run`: every rank fits the plan, and a mistake in any of what is checked is found."""

from __future__ import annotations

import re

import pytest
import torch
from processes import forked

import nemo_sdg.dry_run  # noqa: F401 - before the forks, which share it
from nemo_sdg import cli
from nemo_sdg import plan as planning
from nemo_sdg.config import load
from nemo_sdg.errors import TopologyError

SMALL = ["run", "tiny", "--dry-run", "topology.tp=2", "topology.pp=2", "topology.dp=2", "preference.enabled=true"]


def dry_run(*words, plant=lambda: None):
    """(exit status, what was said)"""

    def work():
        plant()
        return cli.main(list(words))

    done = forked(work)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["topology.virtual_stages=2", "topology.sequence_parallel=true", "sft.micro_batch_size=4", "reward.micro_batch_size=4"],
        ["generate.topology.pp=1", "generate.topology.tp=1"],
        ["models.placement=split", "score.topology.dp=1"],
        ["topology.first_stage_layers=1", "topology.last_stage_layers=3", "models.dtype=bf16"],
        ["sft.lora.rank=4", "reward.lora.rank=2", "sft.lora.targets=[linear_qkv,linear_fc2]"],
        ["models.reward=null", "reward.start_from=base"],
    ],
    ids=lambda more: " ".join(more) or "plain",
)
def test_all_ranks_of_a_small_run_fit(more):
    status, said = dry_run(*SMALL, *more)
    assert status == 0, said
    assert "all 8 ranks fit together" in said


@pytest.mark.parametrize(
    "more, ranks, models",
    [
        ([], 96, 384),
        (["topology.pp=16", "topology.dp=2"], 256, 512),
    ],
    ids=["pp12", "pp16 dp2"],
)
def test_all_ranks_of_the_340b_run_fit_without_memory(more, ranks, models):
    status, said = dry_run("run", "nemotron4_340b", "--dry-run", *more)
    assert status == 0, said
    assert f"all {ranks} ranks fit together" in said and f"{models} models on meta tensors" in said
    number, unit = re.search(r"s and ([\d.]+) (\w+) of memory", said).groups()
    assert unit in ("B", "KiB", "MiB"), f"{number} {unit}: the ranks are not on meta tensors"


def replaced(where, name, make):
    """Puts `make(what is there)` in the place of a name of a module."""
    setattr(where, name, make(getattr(where, name)))


def wider_layers():
    from nemo_sdg.dry_run import building

    def change(build):
        def built(shape, *args, **more):
            from dataclasses import replace

            return build(replace(shape, ffn_hidden_size=shape.ffn_hidden_size + 8), *args, **more)

        return built

    replaced(building, "build_chunks", change)


def another_shard():
    from nemo_sdg.models import nemotron

    class Halved(nemotron.ColumnParallel):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            self.weight = torch.nn.Parameter(self.weight[: self.weight.size(0) // 2])

    replaced(nemotron, "ColumnParallel", lambda _: Halved)


def a_parameter_too_few():
    from nemo_sdg.plan import memory

    replaced(memory, "rank_parameters", lambda count: lambda *args, **more: count(*args, **more) - 1)


def stages_exchanged():
    from nemo_sdg.plan import models

    replaced(models, "stage_chunks", lambda cut: lambda *args, **more: cut(*args, **more)[::-1])


def a_norm_too_few():
    from nemo_sdg.dry_run import building

    def change(places):
        def fewer(*args, **more):
            return {key: one for key, one in places(*args, **more).items() if not key.endswith("final_layernorm.bias")}

        return fewer

    replaced(building, "tensor_places", change)


def shards_exchanged():
    from nemo_sdg.plan import loading

    def change(region):
        return lambda place, layer, tp, rank: region(place, layer, tp, rank if place.stacked else tp - 1 - rank)

    replaced(loading, "region", change)


def a_shard_saved_twice():
    from nemo_sdg.models.nemotron import NemotronModel

    def change(make):
        def state(self, *args, **more):
            found = make(self, *args, **more)
            for entry in found.values():
                entry.replica_id = 0
            return found

        return state

    replaced(NemotronModel, "sharded_state_dict", change)


def a_shard_saved_elsewhere():
    from nemo_sdg.models.nemotron import NemotronModel

    def change(make):
        def state(self, *args, **more):
            found = make(self, *args, **more)
            for entry in found.values():
                if entry.key.endswith("linear_fc2.weight"):
                    first, *others = entry.global_offset
                    entry.global_offset = (0, *others)
            return found

        return state

    replaced(NemotronModel, "sharded_state_dict", change)


def smaller_numbers():
    from nemo_sdg.plan import activations

    replaced(activations, "ITEM_BYTES", lambda sizes: {**sizes, "fp32": 2})


def fewer_keys():
    from dataclasses import replace

    from nemo_sdg.engine import fitting

    replaced(fitting, "make_budget", lambda make: lambda **more: replace(made := make(**more), blocks=made.blocks - 1))


def replicas_outermost():
    from megatron.core import parallel_state

    replaced(
        parallel_state,
        "initialize_model_parallel",
        lambda lay: lambda *args, **more: lay(*args, order="tp-cp-ep-pp-dp", **more),
    )


def backward_first():
    from megatron.core.pipeline_parallel import schedules

    replaced(
        schedules, "convert_schedule_table_to_order", lambda order: lambda *args: [-one for one in order(*args)]
    )


@pytest.mark.parametrize(
    "plant, found",
    [
        (wider_layers, "generate: .*the model's ffn_hidden_size is not the checkpoint's.*(ranks 0, 1, 4, 5)"),
        (another_shard, "linear_qkv.weight does not fit the model's"),
        (a_parameter_too_few, r"train sft: it holds ([\d,]+) parameters, planned are ([\d,]+) \(ranks 0, 1\)"),
        (stages_exchanged, r"generate: it holds the layers \[0, 1\], planned are \[2, 3\] .ranks 0, 1"),
        (a_norm_too_few, "train rm: model.decoder.final_layernorm.bias is built and not planned .ranks 4, 5"),
        (shards_exchanged, "score: it reads [0-9,]+ bytes at"),
        (a_shard_saved_twice, "ranks would write the same part of model.decoder.final_layernorm.weight"),
        (a_shard_saved_elsewhere, "Megatron would save .*linear_fc2.weight, expected"),
        (smaller_numbers, "generate: it holds ([0-9,]+) bytes of weights, planned are"),
        (fewer_keys, "generate: it holds ([0-9,]+) bytes of keys and values, planned are"),
        (replicas_outermost, "rank 2 stands elsewhere"),
        (backward_first, "the schedule of preference with 32 micro batches does not end: stage 0 waits before"),
    ],
    ids=lambda case: case.__name__ if callable(case) else "",
)
def test_a_planted_mistake_is_found(plant, found):
    status, said = dry_run(*SMALL, plant=plant)
    assert status == 1, said
    assert re.search(f"nemo-sdg: dry run: .*{found}", said), said
    assert "fit together" not in said


def test_a_rank_that_needs_more_than_its_gpu_has_is_found():
    status, said = dry_run("run", "minitron_4b", "--dry-run", "hardware.gpu=L4")
    assert status == 1 and "does not fit on L4" in said
    assert re.search(r"nemo-sdg: dry run: the fullest rank needs [\d.]+ GiB, and can use 18.6 GiB of L4", said), said


def test_a_batch_that_the_replicas_of_a_launch_cannot_take_is_refused_before():
    words = ["topology.virtual_stages=8", *(f"{kind}.global_batch_size=108" for kind in ("sft", "reward"))]
    config = load("nemotron4_340b", words)
    assert planning.make(config, world=96, files=False).ranks == 96
    with pytest.raises(TopologyError, match="2 replicas, 12 micro batches of each together.*sft.global_batch_size=96"):
        planning.make(config, world=192, files=False)
