"""The architecture against transformers' implementation, and against itself at every topology (fp64)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from folders import make_folder, make_model, make_tokenizer, small_shape
from plain_forward import forward, gather_vocabulary
from ranks import TOPOLOGIES, run_ranks

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import fill
from nemo_sdg.checkpoints.names import region, released_key, tensor_places
from nemo_sdg.models.nemotron import LayerNorm1P, build, squared_relu, transformer_config

IDS = torch.randint(6, 384, (3, 24), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    return make_folder(root / "policy", small_shape(), make_tokenizer(root / "t.model"))


def logits(mesh, folder, sequence_parallel=False):
    shape = small_shape()
    config = transformer_config(shape, dtype=torch.float64, tp=mesh.tp, pp=mesh.pp, sequence_parallel=sequence_parallel)
    model = build(config, shape, pre_process=mesh.first_stage, post_process=mesh.last_stage)
    fill(model, ModelFolder.open(folder), mesh)
    with torch.no_grad():
        local = forward(model.eval(), mesh, IDS)
        if local is None:
            return None
        return torch.stack([gather_vocabulary(row, mesh, small_shape().vocab_size) for row in local]).numpy()


def test_same_logits_at_every_topology(folder):
    reference = run_ranks(logits, folder)[0]
    assert np.abs(reference).max() > 1, "logits near zero would agree by themselves"
    for name, (tp, pp, dp) in TOPOLOGIES.items():
        results = [r for r in run_ranks(logits, folder, tp=tp, pp=pp, dp=dp) if r is not None]
        assert len(results) == tp * dp
        for result in results:
            np.testing.assert_allclose(result, reference, rtol=0, atol=1e-10, err_msg=name)


def against_transformers(mesh, groups):
    """Our logits and those of transformers' NemotronForCausalLM on the same weights, fp64."""
    import dataclasses

    from transformers import NemotronConfig, NemotronForCausalLM

    shape = dataclasses.replace(small_shape(), num_query_groups=groups)
    model = make_model(mesh, shape, reward=False).double().eval()
    theirs = NemotronForCausalLM(
        NemotronConfig(
            vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, intermediate_size=shape.ffn_hidden_size,
            num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=groups, head_dim=shape.kv_channels, partial_rotary_factor=0.5,
            max_position_embeddings=shape.seq_length, norm_eps=shape.layernorm_epsilon,
            tie_word_embeddings=False, attn_implementation="sdpa",
        )
    ).double().eval()  # fmt: skip
    ours = dict(model.named_parameters())
    state = {
        "model.embed_tokens.weight": ours["embedding.word_embeddings.weight"],
        "lm_head.weight": ours["output_layer.weight"],
    }
    for part in ("weight", "bias"):
        state[f"model.norm.{part}"] = ours[f"decoder.final_layernorm.{part}"]
    per_group = shape.num_attention_heads // groups
    for layer in range(shape.num_layers):
        here, there = f"decoder.layers.{layer}", f"model.layers.{layer}"
        qkv = ours[f"{here}.self_attention.linear_qkv.weight"].view(groups, per_group + 2, shape.kv_channels, -1)
        state[f"{there}.self_attn.q_proj.weight"] = qkv[:, :per_group].reshape(shape.query_size, -1)
        state[f"{there}.self_attn.k_proj.weight"] = qkv[:, per_group].reshape(groups * shape.kv_channels, -1)
        state[f"{there}.self_attn.v_proj.weight"] = qkv[:, per_group + 1].reshape(groups * shape.kv_channels, -1)
        state[f"{there}.self_attn.o_proj.weight"] = ours[f"{here}.self_attention.linear_proj.weight"]
        state[f"{there}.mlp.up_proj.weight"] = ours[f"{here}.mlp.linear_fc1.weight"]
        state[f"{there}.mlp.down_proj.weight"] = ours[f"{here}.mlp.linear_fc2.weight"]
        for part in ("weight", "bias"):
            state[f"{there}.input_layernorm.{part}"] = ours[f"{here}.input_layernorm.{part}"]
            state[f"{there}.post_attention_layernorm.{part}"] = ours[f"{here}.pre_mlp_layernorm.{part}"]
    theirs.load_state_dict(state)
    with torch.no_grad():
        return model(IDS, None, None).numpy(), theirs(IDS).logits.numpy()


@pytest.mark.parametrize("groups", [2, 4], ids=["grouped", "multi-head"])
def test_logits_equal_those_of_transformers(groups):
    pytest.importorskip("transformers")
    ours, theirs = run_ranks(against_transformers, groups)[0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())


def test_layer_norm_adds_one_to_the_scale_and_has_a_bias():
    norm = LayerNorm1P(transformer_config(small_shape()), 4)
    with torch.no_grad():
        norm.weight.fill_(1.0)
        norm.bias.fill_(0.5)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    expected = 2 * (x - 2.5) / (1.25 + 1e-5) ** 0.5 + 0.5
    torch.testing.assert_close(norm(x), expected)


def test_squared_relu():
    assert squared_relu(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0.0, 0.0, 9.0]


def reward_gradients(mesh, sequence_parallel):
    """Gradient of a sum of rewards with respect to the embedding, TP1 weights drawn by name so that ranks agree."""
    shape = small_shape()
    config = transformer_config(shape, dtype=torch.float64, tp=mesh.tp, sequence_parallel=sequence_parallel)
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from nemo_sdg.parallel.device import cuda_calls_on_cpu

    model = build(config, shape, pre_process=True, post_process=True, reward=True)
    places = tensor_places(shape, reward=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            key, layer = released_key(name, 0)
            place = places[key]
            whole = torch.randn(place.shape, generator=torch.Generator().manual_seed(len(key)), dtype=torch.float64)
            piece = whole[region(place, layer, mesh.tp, mesh.tp_rank)] * 0.2
            parameter.copy_(piece[0] if place.stacked else piece)
    with cuda_calls_on_cpu():
        model_parallel_cuda_manual_seed(1)
        rewards = model(IDS, None, None, last=torch.tensor([[0, 4], [1, 23], [2, 11]]))
        rewards.square().sum().backward()
    # Norms see a part of the sequence each under sequence parallelism; Megatron sums them over the group.
    norm = model.decoder.final_layernorm.bias.grad.clone()
    if sequence_parallel:
        dist.all_reduce(norm, group=mesh.tp_group)
    return rewards.detach().numpy(), norm.numpy()


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_reward_head_and_its_gradient_under_tensor_parallelism(sequence_parallel):
    rewards, gradient = run_ranks(reward_gradients, False)[0]
    assert rewards.shape == (3, 9)
    for other, its_gradient in run_ranks(
        reward_gradients, sequence_parallel, tp=2, sequence_parallel=sequence_parallel
    ):
        np.testing.assert_allclose(other, rewards, rtol=1e-10)
        np.testing.assert_allclose(its_gradient, gradient, rtol=1e-9, atol=1e-12)
