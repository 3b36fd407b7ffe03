"""A vocabulary that tensor parallelism does not divide: the padding is in no softmax, no sample and no gradient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cuts import cut_of
from folders import make_folder, make_tokenizer, small_shape
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from plain_forward import forward, gather_vocabulary
from ranks import run_ranks

from nemo_sdg.engine.generate import Request, generate
from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.sampling import Sampling
from nemo_sdg.models.shapes import sizes
from nemo_sdg.parallel.device import cuda_calls_on_cpu
from nemo_sdg.training.losses import vocab_parallel_log_probs

SIZES = {389: {1: [0], 2: [0, 1], 4: [0, 0, 0, 3]}, 5: {1: [0], 2: [0, 1], 4: [0, 0, 1, 2]}}
"""Padding of each rank, by size of the vocabulary and TP: of 5 entries over four ranks the last holds none at all."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("padded")
    tokenizer = make_tokenizer(root / "t.model")
    shape = replace(small_shape(), num_query_groups=4)
    return {
        size: make_folder(root / str(size), replace(shape, vocab_size=size), tokenizer, seed=size) for size in SIZES
    }


def ids(size: int) -> torch.Tensor:
    return torch.randint(0, size, (3, 20), generator=torch.Generator().manual_seed(5))


def logits(mesh, folder, size):
    model, _ = load_model(folder, mesh, dtype="fp64")
    with torch.no_grad():
        local_BSV = forward(model, mesh, ids(size))
        if local_BSV is None:
            return None
        whole = gather_vocabulary(local_BSV.flatten(0, 1), mesh, model.vocab_size)
    return whole.numpy(), int(local_BSV[0, 0].isneginf().sum()), model.num_padding


@pytest.mark.parametrize("size", SIZES)
def test_logits_are_those_of_one_rank(folders, size):
    reference, *_ = run_ranks(logits, folders[size], size)[0]
    assert np.abs(reference).max() > 1 and np.isfinite(reference).all()
    for tp, pp in ((1, 2), (2, 1), (4, 1), (2, 2)):
        results = [result for result in run_ranks(logits, folders[size], size, tp=tp, pp=pp) if result is not None]
        assert [told for _, told, _ in results] == [count for *_, count in results] == SIZES[size][tp]
        for found, *_ in results:
            np.testing.assert_allclose(found, reference, rtol=0, atol=1e-10)


def generated(mesh, folder, temperature):
    model, tokenizer = load_model(folder, mesh, dtype="fp64")
    with torch.no_grad():
        if temperature and hasattr(model, "output_layer"):
            model.output_layer.weight.zero_()  # the padding would be as probable as any token
    wanted = [Request(f"p{i}", 0, [3 + i, 4, 5]) for i in range(9)]
    return generate(model, tokenizer, mesh, wanted, Sampling(max_tokens=12, temperature=temperature), 4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_tokens_are_chosen(folders, temperature):
    reference = run_ranks(generated, folders[389], temperature)[0]
    assert sum(len(row.token_ids) for row in reference) > 50
    for grid in (dict(tp=2), dict(tp=4), dict(tp=2, pp=2)):
        assert all(result == reference for result in run_ranks(generated, folders[389], temperature, **grid))


def loss_and_gradients(mesh, folder, size):
    model, _ = load_model(folder, mesh, dtype="fp64")
    with cuda_calls_on_cpu():
        model_parallel_cuda_manual_seed(1)
        logits_BSV_local = model.train()(ids(size), None, None)
        target_BS = ids(size).roll(-1, dims=1)
        target_BS[0] = size - 1  # the neighbour of the padding
        loss = -vocab_parallel_log_probs(logits_BSV_local, target_BS, mesh.tp_group).mean()
        loss.backward()
    return loss.item(), {name: value.grad.numpy() for name, value in model.named_parameters()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tp", [2, 4])
def test_loss_and_gradients_are_those_of_one_rank(folders, size, tp):
    expected, whole = run_ranks(loss_and_gradients, folders[size], size)[0]
    shard = -(-size // tp)
    for tp_rank, (loss, gradients) in enumerate(run_ranks(loss_and_gradients, folders[size], size, tp=tp)):
        assert loss == pytest.approx(expected, abs=1e-12)
        assert gradients.keys() == whole.keys()
        for name, found in gradients.items():
            cut = cut_of(whole[name], name, tp, tp_rank)
            np.testing.assert_allclose(found, cut, rtol=0, atol=1e-10 * np.abs(whole[name]).max(), err_msg=name)
        held = max(0, min(shard, size - tp_rank * shard))
        for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
            assert gradients[name].shape[0] == shard and (gradients[name][held:] == 0).all(), name


def test_padded_sizes():
    shape = replace(sizes()["tiny"], vocab_size=389)
    assert [shape.padded_vocab_size(tp) for tp in (1, 2, 4, 8)] == [389, 390, 392, 392]
