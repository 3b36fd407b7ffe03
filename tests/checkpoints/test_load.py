"""Every parameter is filled with its own bits, or the mistake is told by name: heads, shapes, dtypes, whole models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from folders import make_folder, make_model, make_tokenizer, small_shape
from plain_forward import forward
from ranks import TOPOLOGIES, run_ranks

from nemo_sdg.checkpoints import save
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import fill
from nemo_sdg.engine.load import load_model
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.nemotron import build, transformer_config

IDS = torch.randint(6, 300, (3, 12), generator=torch.Generator().manual_seed(5))
BIAS = "model.rm_head.bias"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """policy, reward and biased: the reward model with a bias in its head."""
    root = tmp_path_factory.mktemp("loading")
    make_tokenizer(root / "t.model")
    make_folder(root / "policy", small_shape(), root / "t.model")
    make_folder(root / "reward", small_shape(), root / "t.model", reward=True)
    shutil.copytree(root / "reward", root / "biased")
    array = root / "biased/model_weights" / BIAS
    array.mkdir()
    header = json.loads((root / "biased/model_weights/model.decoder.final_layernorm.bias/.zarray").read_text())
    (array / ".zarray").write_text(json.dumps(header | {"shape": [9], "chunks": [9]}))
    values = torch.arange(1, 10).bfloat16() / 8
    (array / "0").write_bytes(values.view(torch.uint8).numpy().tobytes())
    return root


def bare(mesh, shape=None, *, reward=False, head_bias=False, dtype=torch.float32, value=float("nan")):
    """This rank's model; what is not filled stays `value`."""
    shape = shape or small_shape()
    config = transformer_config(shape, dtype=dtype, tp=mesh.tp, pp=mesh.pp)
    model = build(
        config, shape, pre_process=mesh.first_stage, post_process=mesh.last_stage, reward=reward, head_bias=head_bias
    )
    for parameter in model.parameters():
        parameter.detach().fill_(value)
    return model


def refused(mesh, folder, told, *, fresh_head_seed=None, **kind):
    """Whether this rank refuses the folder for its model, in these words."""
    model = bare(mesh, **kind)
    try:
        fill(model, ModelFolder.open(folder), mesh, fresh_head_seed=fresh_head_seed)
    except CheckpointError as error:
        assert told in str(error), str(error)
        return True
    return False


def rewards(mesh, folder):
    model, _ = load_model(folder, mesh, dtype="fp64", reward=True)
    with torch.no_grad():
        found = forward(model, mesh, IDS, last=torch.tensor([[0, 11], [1, 4], [2, 8]]))
    return None if found is None else found.numpy()


@pytest.mark.parametrize("name", ["one", "tp2", "pp2"])
def test_a_head_with_a_bias_scores_with_it_and_is_written_back(root, tmp_path, name):
    tp, pp, _ = TOPOLOGIES[name]

    def biased(mesh):
        model, tokenizer = load_model(root / "biased", mesh, reward=True)
        save.save(model, tmp_path / "again", small_shape(), ModelFolder.open(root / "biased").tokenizer, mesh)
        return rewards(mesh, root / "biased"), rewards(mesh, root / "reward")

    for scored, without in run_ranks(biased, tp=tp, pp=pp):
        if scored is not None:
            difference = np.broadcast_to(np.arange(1, 10) / 8, scored.shape)
            np.testing.assert_allclose(scored - without, difference, atol=1e-12)
    kept = "model_weights/" + BIAS + "/0"
    assert (tmp_path / "again" / kept).read_bytes() == (root / "biased" / kept).read_bytes()
    assert ModelFolder.open(tmp_path / "again").contents.head_bias


@pytest.mark.parametrize("name", ["one", "pp2"])
def test_a_bias_that_only_one_side_has_is_refused_by_name(root, name):
    tp, pp, _ = TOPOLOGIES[name]
    model_lacks = f"the checkpoint has a tensor that the model lacks, found {BIAS}"
    folder_lacks = f"the model has a tensor that the checkpoint lacks, found no {BIAS}"

    def both(mesh):
        return (
            refused(mesh, root / "biased", model_lacks, reward=True),
            refused(mesh, root / "reward", folder_lacks, reward=True, head_bias=True),
        )

    assert run_ranks(both, tp=tp, pp=pp)[-1] == (True, True)


def test_a_fresh_head_may_have_a_bias_and_it_is_zero(root):
    def fresh(mesh):
        model = bare(mesh, reward=True, head_bias=True)
        fill(model, ModelFolder.open(root / "policy"), mesh, fresh_head_seed=1)
        return model.rm_head.bias.detach().tolist(), model.rm_head.weight.std().item()

    bias, std = run_ranks(fresh)[0]
    assert bias == [0.0] * 9 and 0.005 < std < 0.03


def test_kinds_that_do_not_fit_are_refused_by_name(root):
    def kinds(mesh):
        return (
            refused(mesh, root / "reward", "found no model.output_layer.weight"),
            refused(mesh, root / "policy", "found no model.rm_head.weight", reward=True),
            refused(mesh, root / "reward", "found no model.output_layer.weight", fresh_head_seed=3),
        )

    assert run_ranks(kinds)[0] == (True, True, True)


def other(**sizes):
    return replace(small_shape(), **sizes)


OTHERS = {
    "hidden": (other(hidden_size=128), "the model's hidden_size is not the checkpoint's, found 64, expected 128"),
    "ffn": (other(ffn_hidden_size=1), "ffn_hidden_size"),
    "fewer layers": (other(num_layers=2), "the model's num_layers is not the checkpoint's, found 4, expected 2"),
    "more layers": (other(num_layers=6), "num_layers"),
    "heads": (other(num_attention_heads=8, num_query_groups=4, kv_channels=12), "num_attention_heads"),
    "groups": (other(num_query_groups=4), "num_query_groups"),
    "longer vocabulary": (other(vocab_size=small_shape().vocab_size + 1), "word_embeddings.weight does not fit"),
    "shorter vocabulary": (other(vocab_size=small_shape().vocab_size - 1), "word_embeddings.weight does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_of_another_size_is_refused_by_name(root, name):
    shape, told = OTHERS[name]
    assert run_ranks(lambda mesh: refused(mesh, root / "policy", told, shape=shape))[0]


def test_nothing_is_spread_over_a_parameter_of_another_shape(root):
    """`copy_` would repeat a row of one value."""

    def spread(mesh):
        found = []
        for size in ((64, 1), (1, 128), (65, 128), (64, 129), (128, 64)):
            model = bare(mesh)
            model.decoder.layers[1].mlp.linear_fc2.weight = torch.nn.Parameter(torch.zeros(size))
            told = f"does not fit the model's decoder.layers.1.mlp.linear_fc2.weight, found (64, 128), expected {size}"
            try:
                fill(model, ModelFolder.open(root / "policy"), mesh)
            except CheckpointError as error:
                found.append(told in str(error))
        return found

    assert run_ranks(spread)[0] == [True] * 5


def test_no_parameter_is_left_as_it_was(root):
    """On all ranks, in the dtype of the file (straight into memory) and in others (through a buffer)."""

    def left(mesh, kind, dtype):
        model = bare(mesh, reward=kind == "reward", dtype=dtype)
        reading = fill(model, ModelFolder.open(root / kind), mesh, threads=3)
        assert reading.num_bytes == 2 * sum(p.numel() for p in model.parameters())
        return [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]

    for kind in ("policy", "reward"):
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            assert run_ranks(left, kind, dtype, tp=2, pp=2) == [[]] * 4


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
def test_saved_in_any_dtype_and_loaded_in_any_other(root, tmp_path, dtype):
    stored = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}[dtype]

    def there_and_back(mesh):
        model = make_model(mesh, small_shape(), reward=False, seed=4)
        save.save(model, tmp_path / dtype, small_shape(), b"", mesh, dtype=dtype)
        assert ModelFolder.open(tmp_path / dtype).dtype == dtype
        for wanted in (torch.bfloat16, torch.float32, torch.float64):
            loaded = bare(mesh, dtype=wanted)
            fill(loaded, ModelFolder.open(tmp_path / dtype), mesh)
            for (name, before), after in zip(model.named_parameters(), loaded.parameters()):
                assert torch.equal(before.detach().to(stored).to(wanted), after), name

    run_ranks(there_and_back)


def test_a_value_that_the_dtype_cannot_hold_is_refused_by_name(root, tmp_path):
    def too_large(mesh):
        model = make_model(mesh, small_shape(), reward=False).double()
        with torch.no_grad():
            model.decoder.layers[3].mlp.linear_fc2.weight[-1, -1] = -1e39
        with pytest.raises(CheckpointError, match="mlp.linear_fc2.weight holds values that are not finite in bf16"):
            save.save(model, tmp_path / "narrow", small_shape(), b"", mesh)
        assert not (tmp_path / "narrow").exists()
        save.save(model, tmp_path / "wide", small_shape(), b"", mesh, dtype="fp64")
        told = "mlp.linear_fc2.weight holds values that torch.float32 cannot hold"
        wide = bare(mesh, dtype=torch.float64)
        fill(wide, ModelFolder.open(tmp_path / "wide"), mesh)
        assert wide.decoder.layers[3].mlp.linear_fc2.weight[-1, -1] == -1e39
        return refused(mesh, tmp_path / "wide", told)

    assert run_ranks(too_large)[0]
