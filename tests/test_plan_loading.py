"""The plan of loading: the ranges that the loader executes, every byte once, from metadata alone."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from folders import make_folder, make_tokenizer, small_shape
from ranks import run_ranks

from nemo_sdg import plan
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import fill
from nemo_sdg.checkpoints.release_writer import planned
from nemo_sdg.checkpoints.runs import Run
from nemo_sdg.cli import main
from nemo_sdg.config import load
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.nemotron import build, transformer_config
from nemo_sdg.models.shapes import sizes
from nemo_sdg.models.stages import stage_layers
from nemo_sdg.plan.loading import disjoint, loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("planned")
    return make_folder(root / "reward", small_shape(), make_tokenizer(root / "t.model"), reward=True)


def stages(layers, pp):
    return [chunks[0] for chunks in stage_layers(layers, pp)]


@pytest.mark.parametrize("tp, pp", [(1, 1), (2, 1), (2, 2)])
def test_the_loader_reads_what_the_plan_says(folder, tp, pp):
    def counted(mesh):
        shape = small_shape()
        config = transformer_config(shape, dtype=torch.float32, tp=mesh.tp, pp=mesh.pp)
        model = build(config, shape, pre_process=mesh.first_stage, post_process=mesh.last_stage, reward=True)
        reading = fill(model, ModelFolder.open(folder), mesh)
        return mesh.pp_rank, mesh.tp_rank, reading.num_bytes, {str(file) for file in reading.files}

    contents = ModelFolder.open(folder).contents
    made = loading(contents, contents.places(reward=True), tp, stages(4, pp))
    expected = [(r.pp_rank, r.tp_rank, r.num_bytes, {str(file) for file in r.files}) for r in made.ranks]
    assert sorted(run_ranks(counted, tp=tp, pp=pp)) == sorted(expected)


@pytest.mark.parametrize("grid", [1, 4, 8])
def test_every_byte_of_340b_once(grid, tmp_path):
    """Also where the folder was saved for another number of ranks than will read it."""
    shape = sizes()["nemotron4_340b"]
    contents = planned(shape, tmp_path, reward=False, tp=grid)
    made = loading(contents, contents.places(reward=False), 8, stages(96, 12))
    assert made.num_bytes == 682_058_391_552
    copies = 7 * made.copied_bytes  # the other seven ranks' norms
    assert sum(rank.num_bytes for rank in made.ranks) == made.num_bytes + copies
    assert made.copied_bytes == 2 * (96 * 4 + 2) * 18432
    assert max(len(rank.files) for rank in made.ranks) <= 8 * 8 + 3


def run(offset, row_bytes, stride=None, count=1):
    return Run(None, offset, row_bytes, stride or row_bytes, count, 0, 0)


@pytest.mark.parametrize(
    "found, apart",
    [
        ([run(0, 10), run(10, 10)], True),
        ([run(0, 11), run(10, 10)], False),
        ([run(0, 4, 8, 3), run(4, 4, 8, 3)], True),
        ([run(0, 4, 8, 3), run(3, 4, 8, 3)], False),
        ([run(0, 4, 8, 3), run(4, 4, 8, 3), run(24, 5)], True),
        ([run(0, 4, 8, 3), run(4, 4, 8, 3), run(23, 5)], False),
        ([run(0, 4, 8, 3), run(4, 2, 8, 3), run(7, 1)], True),
        ([run(0, 4, 8, 3), run(16, 4, 8, 3)], False),
        ([run(0, 4, 8, 3), run(4, 6, 8, 3)], False),
        ([run(0, 4, 8, 3), run(1, 1)], False),
    ],
)
def test_disjoint(found, apart):
    assert disjoint(found) is apart
    assert disjoint(found[::-1]) is apart


def test_metadata_that_contradict_themselves_are_refused(tmp_path):
    contents = planned(small_shape(), tmp_path, reward=False, tp=2)
    key = "model.output_layer.weight"
    tensor = contents.tensors[key]
    first, second = tensor.by_layer[None]

    def with_pieces(*pieces):
        changed = dataclasses.replace(tensor, by_layer={None: pieces})
        return dataclasses.replace(contents, tensors={**contents.tensors, key: changed})

    same_bytes = with_pieces(first, dataclasses.replace(second, file=first.file))
    with pytest.raises(CheckpointError, match="two tensors claim the same bytes"):
        loading(same_bytes, contents.places(reward=False), 2, stages(4, 1))
    with pytest.raises(CheckpointError, match=f"{key} is not covered"):
        loading(with_pieces(first), contents.places(reward=False), 2, stages(4, 1))


def test_metadata_alone_can_be_planned_but_not_run(folder, tmp_path, capsys):
    def headers_only(path, names):
        return [name for name in names if name[0].isdigit()]

    bare = {}
    for role in ("base", "instruct", "reward"):
        bare[role] = shutil.copytree(f"examples/tiny/{role}", tmp_path / role, ignore=headers_only)
    overrides = [f"models.{role}={path}" for role, path in bare.items()] + ["topology.tp=2"]
    assert main(["plan", "tiny", *overrides, "--details", "--ranges", str(tmp_path / "ranges.jsonl")]) == 0
    told = capsys.readouterr().out
    assert "metadata alone, no weights" in told
    assert "every byte of every tensor is read exactly once per replica" in told
    rows = [json.loads(line) for line in (tmp_path / "ranges.jsonl").read_text().splitlines()]
    generate = [row for row in rows if row["model"] == "generate"]
    whole = sum(row["bytes"] * row["count"] for row in generate)
    contents = ModelFolder.open(bare["instruct"]).contents
    assert whole == 2 * contents.shape.num_parameters + 2 * 128 * (4 * 4 + 2)  # bf16; the norms once more
    assert {row["tp_rank"] for row in generate} == {0, 1}
    with pytest.raises(CheckpointError, match="a chunk is missing"):
        plan.make(load("tiny", overrides))


def test_uneven_stages_are_planned_as_they_are_cut():
    made = plan.make(
        load("nemotron4_340b", ["topology.first_stage_layers=7", "topology.last_stage_layers=9"]), files=False
    )
    layer = 3_454_083_072 - 4 * 18432  # what TP cuts
    first, second, last = (made.models[0].stages[i].parameters for i in (0, 1, 11))
    assert second == 8 * (layer // 8 + 4 * 18432)
    assert first == 7 * (layer // 8 + 4 * 18432) + 256_000 * 18432 // 8
    assert last == 9 * (layer // 8 + 4 * 18432) + 256_000 * 18432 // 8 + 2 * 18432
    assert made.models[0].loading.num_bytes == 682_058_391_552
