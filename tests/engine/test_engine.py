"""The engine gives the same text and the same rewards on any ranks, with any neighbours, with and without a cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from folders import small_shape
from ranks import TOPOLOGIES, run_ranks

from nemo_sdg.config import OUTPUTS
from nemo_sdg.engine.generate import Request, generate
from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.sampling import Sampling
from nemo_sdg.engine.score import encode, named, score
from nemo_sdg.errors import RowError
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.parallel.random import row_uniforms

PROMPTS = [[5, 30 + i, 40, 41 + i][: 2 + i % 3] + list(range(60, 60 + 3 * (i % 5))) for i in range(11)]
CONVERSATIONS = [
    [{"role": "user", "content": "ab" * (1 + i % 4)}, {"role": "assistant", "content": "cd" * (i % 3 + 1)}]
    for i in range(9)
]


def requests(prompts=PROMPTS, samples=2):
    return [Request(f"p{i}", sample, prompt) for i, prompt in enumerate(prompts) for sample in range(samples)]


def generated(mesh: Mesh, folder, sampling: Sampling, slots: int = 6, wanted=None, dtype: str = "fp64"):
    model, tokenizer = load_model(folder, mesh, dtype=dtype)
    return generate(model, tokenizer, mesh, wanted or requests(), sampling, slots)


def scored(mesh: Mesh, folder, pack_tokens: int = 100, dtype: str = "fp64"):
    model, tokenizer = load_model(folder, mesh, dtype=dtype, reward=True)
    rows = [encode(tokenizer, conversation, model.max_sequence_length) for conversation in CONVERSATIONS]
    return score(model, tokenizer, mesh, rows, pack_tokens)


def all_equal(results):
    return all(result == results[0] for result in results)


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=12, temperature=0), Sampling(max_tokens=12, top_p=0.9, seed=3)],
                         ids=["greedy", "sampled"])  # fmt: skip
def test_same_tokens_at_every_topology(folders, sampling):
    reference = None
    for name, (tp, pp, dp) in TOPOLOGIES.items():
        results = run_ranks(generated, folders["policy"], sampling, tp=tp, pp=pp, dp=dp)
        assert all_equal(results), f"ranks of {name} disagree"
        reference = reference or results[0]
        assert results[0] == reference, name
    assert {g.finish_reason for g in reference} <= {"stop", "length", "context"}
    assert sum(len(g.token_ids) for g in reference) > 100


def test_same_rewards_at_every_topology(folders):
    reference = None
    for name, (tp, pp, dp) in TOPOLOGIES.items():
        for rewards in run_ranks(scored, folders["reward"], tp=tp, pp=pp, dp=dp):
            reference = rewards if reference is None else reference
            np.testing.assert_allclose(rewards, reference, rtol=0, atol=1e-6, err_msg=name)
    assert np.std(reference, axis=0).min() > 1e-3, "the rewards do not depend on the conversation"


def test_neighbours_and_slots_do_not_change_a_row(folders):
    sampling = Sampling(max_tokens=10, seed=5)
    together = run_ranks(generated, folders["policy"], sampling, 5)[0]
    alone = run_ranks(generated, folders["policy"], sampling, 1)[0]
    wide = run_ranks(generated, folders["policy"], sampling, 64, requests()[::-1])[0][::-1]
    assert together == alone == wide


def test_samples_and_seeds_differ(folders):
    one, other = (run_ranks(generated, folders["policy"], Sampling(max_tokens=10, seed=s))[0] for s in (1, 2))
    assert one != other
    assert one[0] != one[1], "two samples of a prompt are equal"


def greedy_without_cache(mesh: Mesh, folder, prompt, count):
    model, tokenizer = load_model(folder, mesh, dtype="fp64")
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            token = int(model(torch.tensor([ids]), None, None)[0, -1].argmax())
            if token in tokenizer.stop_ids:
                break
            ids.append(token)
    return tuple(ids[len(prompt) :])


def test_the_cache_changes_nothing(folders):
    cached = run_ranks(generated, folders["policy"], Sampling(max_tokens=8, temperature=0), 4, requests(samples=1))[0]
    for prompt, generation in zip(PROMPTS[:5], cached):
        assert generation.token_ids == run_ranks(greedy_without_cache, folders["policy"], prompt, 8)[0]


def test_rewards_do_not_depend_on_the_pack(folders):
    alone, together = (run_ranks(scored, folders["reward"], tokens)[0] for tokens in (1, 10_000))
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-6)


def test_the_context_ends_a_row(folders):
    context = small_shape().seq_length
    wanted = [Request(f"long {room}", 0, [30] * (context - room)) for room in (1, 3)]

    def never_stops(mesh):
        model, tokenizer = load_model(folders["policy"], mesh)
        with torch.no_grad():
            model.output_layer.weight.zero_()  # greedy then takes token 0, which stops nothing
        return generate(model, tokenizer, mesh, wanted, Sampling(max_tokens=50, temperature=0), 2)

    ended = run_ranks(never_stops)[0]
    assert [(e.finish_reason, len(e.token_ids)) for e in ended] == [("context", 1), ("context", 3)]


def test_a_prompt_over_the_context_is_refused(folders):
    def refused(mesh):
        with pytest.raises(RowError, match="longer than the context"):
            generated(mesh, folders["policy"], Sampling(max_tokens=2), 2, [Request("p", 0, [30] * 256)])

    run_ranks(refused)


def uniform_model(mesh: Mesh, folder):
    model, tokenizer = load_model(folder, mesh)
    with torch.no_grad():
        model.output_layer.weight.zero_()  # every token is as probable as every other
    return generate(model, tokenizer, mesh, requests(samples=1), Sampling(max_tokens=9, seed=4), 3), tokenizer.stop_ids


def test_each_position_of_each_row_has_a_number_of_its_own(folders):
    done, stop_ids = run_ranks(uniform_model, folders["policy"])[0]
    for index, generation in enumerate(done):
        expected = [int(number * small_shape().vocab_size) for number in row_uniforms(4, f"p{index}", 0, 9)]
        ends = [place for place, token in enumerate(expected) if token in stop_ids] or [9]
        assert list(generation.token_ids) == expected[: ends[0]]


def not_finite(mesh: Mesh, folder):
    model, tokenizer = load_model(folder, mesh, dtype="fp32")
    with torch.no_grad():
        model.embedding.word_embeddings.weight[77] = float("nan")
    wanted = [Request("bad", 0, [30, 77]), Request("good", 0, [30, 31])]
    return generate(model, tokenizer, mesh, wanted, Sampling(max_tokens=4), 2)


def not_finite_in_one_slot(mesh: Mesh, folder):
    model, tokenizer = load_model(folder, mesh, dtype="fp32")
    with torch.no_grad():
        model.embedding.word_embeddings.weight[77] = float("nan")
    good = [Request("good", sample, [30, 31]) for sample in range(2)]
    bad = Request("bad", 0, [30, *[77] * 40])
    one_slot = generate(model, tokenizer, mesh, [bad, *good], Sampling(max_tokens=4), 1)
    return one_slot[1:], generate(model, tokenizer, mesh, good, Sampling(max_tokens=4), 1)


def test_a_slot_that_held_what_is_not_finite_is_clean_for_the_next_row(folders):
    after, alone = run_ranks(not_finite_in_one_slot, folders["policy"])[0]
    assert after == alone


def test_logits_that_are_not_finite_end_only_their_row(folders):
    bad, good = run_ranks(not_finite, folders["policy"])[0]
    assert bad.finish_reason == "not_finite" and bad.token_ids == ()
    assert good.finish_reason != "not_finite"


def test_attribute_names_and_shortest_decimals():
    values = named(np.array([9, 9, 9, 9, 0.1, 2.25, -1, 4.5, 3], dtype=np.float32), OUTPUTS)
    assert values == {"helpfulness": 0.1, "correctness": 2.25, "coherence": -1.0, "complexity": 4.5, "verbosity": 3.0}
