"""Packed scoring against one conversation at a time through the plain model, and log-probabilities against its logits."""

from __future__ import annotations

import numpy as np
import torch
from ranks import TOPOLOGIES, run_ranks

from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.score import response_log_probs, score


def conversations() -> list[list[int]]:
    """Some alone, some with a common beginning of one or two levels, one of them the beginning of another."""
    rng = np.random.default_rng(3)

    def text(length):
        return rng.integers(10, 384, length).tolist()

    system, prompts = text(40), [text(60), text(33)]
    shared = [system + prompts[i % 2] + text(1 + 7 * i) for i in range(6)]
    return [*shared, text(5), text(200), shared[1], text(1), shared[0]]


def one_by_one(mesh, folder):
    model, _ = load_model(folder, mesh, dtype="fp64", reward=True)
    with torch.no_grad():
        rows = [
            model(torch.tensor([ids]), None, None, last=torch.tensor([[0, len(ids) - 1]]))[0].numpy() for ids in conversations()
        ]
    return np.stack(rows)


def packed(mesh, folder, pack_tokens, dtype="fp64"):
    model, tokenizer = load_model(folder, mesh, dtype=dtype, reward=True)
    done = []
    return score(model, tokenizer, mesh, conversations(), pack_tokens, done.append), done


def test_packed_rewards_are_those_of_single_conversations(folders):
    truth = run_ranks(one_by_one, folders["reward"])[0]
    for pack_tokens in (1, 300, 100_000):
        for tp, pp, dp in TOPOLOGIES.values():
            for rewards, done in run_ranks(packed, folders["reward"], pack_tokens, tp=tp, pp=pp, dp=dp):
                np.testing.assert_allclose(rewards, truth, rtol=0, atol=2e-6)  # the result is float32
                assert sum(done) == len(truth)
    assert truth.std(axis=0).min() > 1e-3, "the rewards do not depend on the conversation"


def test_packs_agree_in_fp32(folders):
    truth = run_ranks(one_by_one, folders["reward"])[0]
    np.testing.assert_allclose(run_ranks(packed, folders["reward"], 10_000, "fp32")[0][0], truth, rtol=0, atol=1e-4)


def counted(mesh, folder):
    model, tokenizer = load_model(folder, mesh, reward=True)
    seen = []
    model.embedding.word_embeddings.register_forward_hook(lambda module, given, made: seen.append(given[0].numel()))
    score(model, tokenizer, mesh, conversations(), 100_000)
    return seen


def test_a_shared_beginning_goes_through_the_model_once(folders):
    # Two endings stand twice; under 32 tokens, that is not worth a piece of its own.
    once = 40 + (60 + 33) + (1 + 8 + 15 + 22 + 29 + 36) + 5 + 200 + 1 + (1 + 8)
    (tokens,) = run_ranks(counted, folders["reward"])[0]
    assert once <= tokens < once + 16, "nothing is padded but the pass to a multiple of 16"


def answers() -> list[tuple[list[int], list[int]]]:
    rng = np.random.default_rng(5)
    prompt = rng.integers(10, 384, 50).tolist()
    return [(prompt[: 50 - i % 2], rng.integers(10, 384, 1 + 9 * i).tolist()) for i in range(6)]


def from_logits(mesh, folder):
    model, _ = load_model(folder, mesh, dtype="fp64")
    rows = []
    with torch.no_grad():
        for prompt, answer in answers():
            log_probs = model(torch.tensor([prompt + answer]), None, None)[0].log_softmax(-1)
            rows.append(log_probs[range(len(prompt) - 1, len(prompt + answer) - 1), answer].numpy())
    return rows


def of_responses(mesh, folder, pack_tokens):
    model, _ = load_model(folder, mesh, dtype="fp64")
    return response_log_probs(model, mesh, answers(), pack_tokens)


def test_log_probabilities_of_responses(folders):
    truth = run_ranks(from_logits, folders["policy"])[0]
    for pack_tokens in (1, 10_000):
        for tp, pp, dp in TOPOLOGIES.values():
            for found in run_ranks(of_responses, folders["policy"], pack_tokens, tp=tp, pp=pp, dp=dp):
                assert [len(row) for row in found] == [len(answer) for _, answer in answers()]
                np.testing.assert_allclose(np.concatenate(found), np.concatenate(truth), rtol=0, atol=1e-10)


def spoiled(mesh, folder):
    model, tokenizer = load_model(folder, mesh, reward=True)
    with torch.no_grad():
        model.embedding.word_embeddings.weight[77] = float("nan")
    rows = [[30] * 40 + [31, 32], [30] * 40 + [77, 32], [33, 34]]
    return score(model, tokenizer, mesh, rows)


def test_what_is_not_finite_spoils_only_its_conversation(folders):
    rewards = run_ranks(spoiled, folders["reward"])[0]
    assert np.isfinite(rewards[[0, 2]]).all() and not np.isfinite(rewards[1]).any()
