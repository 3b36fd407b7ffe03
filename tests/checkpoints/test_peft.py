"""Adapter folders of others: what is merged bit by bit, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nemo_sdg.checkpoints import peft
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.names import HEAD, LAYERS, region
from nemo_sdg.checkpoints.reading import read_array
from nemo_sdg.errors import CheckpointError
from nemo_sdg.resources import resolve

QKV = LAYERS + "self_attention.linear_qkv.weight"
PREFIX = "base_model.model.model.layers.1.self_attn."


@pytest.fixture(scope="module")
def base() -> ModelFolder:
    return ModelFolder.open(resolve("package:examples/tiny/base"))


def write(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir()
    text = peft.adapter_config("base", rank=2, alpha=4.0, targets=["linear_qkv"], reward=False)
    (folder / peft.CONFIG).write_text(json.dumps(json.loads(text) | config))
    save_file(tensors, folder / peft.WEIGHTS)
    return folder


def pair(base: ModelFolder, part: str, seed: int) -> dict[str, torch.Tensor]:
    """A and B of one projection of layer 1."""
    shape, draw = base.shape, torch.Generator().manual_seed(seed)
    rows = shape.query_size if part == "q_proj" else shape.num_query_groups * shape.kv_channels
    sizes = {"lora_A": (2, shape.hidden_size), "lora_B": (rows, 2)}
    return {f"{PREFIX}{part}.{name}.weight": torch.randn(size, generator=draw) for name, size in sizes.items()}


def test_projections_with_adapters_of_their_own_are_added_where_they_stand(base, tmp_path):
    """Queries and values have different A, keys none; boxes of any cut are those of the whole."""
    q, v = pair(base, "q_proj", 1), pair(base, "v_proj", 2)
    contents = peft.Adapter(write(tmp_path / "a", q | v), base.shape).merged(base.contents)
    stored = base.contents.tensors[QKV]
    box = region(base.contents.places(reward=False)[QKV], 1, 1, 0)
    before = peft._values(read_array(base.contents.files, stored, box, 1), stored.dtype)
    shape = base.shape
    groups = before.reshape(shape.num_query_groups, -1, shape.hidden_size).copy()
    queries = shape.query_size // shape.num_query_groups
    for part, rows in ((q, slice(0, queries)), (v, slice(queries + shape.kv_channels, None))):
        a, b = (tensor.numpy() for tensor in part.values())
        groups[:, rows] += (2.0 * (b @ a)).reshape(shape.num_query_groups, -1, shape.hidden_size)
    expected = torch.from_numpy(groups.reshape(before.shape)).to(torch.bfloat16)
    made = read_array(contents.files, contents.tensors[QKV], box, 1)
    assert stored.dtype == "bf16"
    assert (torch.from_numpy(made.view(np.int16)).view(torch.bfloat16) == expected).all()
    part = (box[0], slice(5, 77), slice(3, 50))
    np.testing.assert_array_equal(read_array(contents.files, contents.tensors[QKV], part, 1), made[5:77, 3:50])
    other = region(base.contents.places(reward=False)[QKV], 0, 1, 0)
    untouched = read_array(contents.files, contents.tensors[QKV], other, 0)
    np.testing.assert_array_equal(untouched, read_array(base.contents.files, stored, other, 0))
    assert HEAD not in contents.tensors


def test_rounding_to_bf16_is_that_of_torch():
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    values[:3] = 1.00390625, 1.01171875, -1.00390625  # in the middle between two of bf16
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    np.testing.assert_array_equal(peft._bits(values, "bf16").view(np.int16), expected)


BROKEN = {
    "another kind": (dict(peft_type="LOHA"), "peft_type: 'LOHA'"),
    "another formula": (dict(use_dora=True), "use_dora: True"),
    "another scale": (dict(use_rslora=True), "use_rslora: True"),
    "other ranks": (dict(rank_pattern={"q_proj": 4}), "rank_pattern"),
    "whole modules": (dict(modules_to_save=["lm_head"]), "modules_to_save"),
    "no rank": (dict(r=None), "no rank"),
    "a rank that is not its own": (dict(r=4), "not of the adapter's rank"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_would_be_merged_wrongly_is_refused(base, tmp_path, name):
    config, said = BROKEN[name]
    folder = write(tmp_path / "a", pair(base, "q_proj", 1), **config)
    with pytest.raises(CheckpointError, match=said):
        peft.Adapter(folder, base.shape)


def test_what_does_not_fit_the_model_is_refused(base, tmp_path):
    q = pair(base, "q_proj", 1)
    names = list(q)
    cases = {
        "unknown": {**q, "base_model.model.model.layers.99.self_attn.q_proj.lora_A.weight": q[names[0]].clone()},
        "half": {names[0]: q[names[0]]},
        "shape": {names[0]: q[names[0]], names[1]: q[names[1]][:-1].clone()},
        "nan": {names[0]: q[names[0]] * float("nan"), names[1]: q[names[1]]},
        "none": {},
    }
    for name, tensors in cases.items():
        with pytest.raises(CheckpointError):
            peft.Adapter(write(tmp_path / name, tensors), base.shape)
    (tmp_path / "none" / peft.WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="no adapter_model.safetensors"):
        peft.Adapter(tmp_path / "none", base.shape)
