"""What DESIGN decision 6 promises of a row's text, each promise by itself, with log-probabilities compared to the last bit.

At a fixed dtype, TP x PP and slot shape a row is bit-equal whatever its neighbours, the order of arrival, DP and restarts. Over
slot counts and TP x PP it is equal in fp64.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from folders import make_folder, make_tokenizer, small_shape
from ranks import TOPOLOGIES, run_ranks

from nemo_sdg.engine.generate import Engine, Request, generate
from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.requests import Sampling

SHAPE = {"slots": 6, "prefill_tokens": 128}
SAMPLING = Sampling(max_tokens=24, seed=7, logprobs=True)


def prompt(index: int) -> list[int]:
    """From 3 to 150 tokens: within a block, at its end, and over two of them."""
    return [10 + (7 * index + place * (index + 3)) % 370 for place in range([3, 64, 150, 65, 20, 128, 31][index % 7])]


def requests(samples: int = 1) -> list[Request]:
    return [Request(f"p{i}", s, prompt(i), None, samples) for i in range(9) for s in range(samples)]


def rows(mesh, folder, wanted, dtype="fp32", shape=SHAPE, first=None):
    """{(prompt, sample): (tokens, log-probabilities)}, after `first` has gone through the same engine."""
    model, tokenizer = load_model(folder, mesh, dtype=dtype)
    engine = Engine(model, tokenizer, mesh, **shape)
    for batch in ([first] if first else []) + [wanted]:
        tickets = {engine.submit(replace_sampling(request)): request for request in batch}
        made = {}
        while not engine.idle:
            made.update({event.ticket: event.generation for event in engine.step() if event.generation})
    return {(r.prompt_id, r.sample): (made[t].token_ids, made[t].logprobs) for t, r in tickets.items()}


def replace_sampling(request: Request) -> Request:
    return Request(request.prompt_id, request.sample, request.prompt_ids, SAMPLING, request.samples)


@pytest.fixture(scope="module")
def together(folders):
    """All rows at once, at each topology."""
    return {
        name: run_ranks(rows, folders["policy"], requests(), tp=tp, pp=pp, dp=dp)[0]
        for name, (tp, pp, dp) in TOPOLOGIES.items()
    }


@pytest.mark.parametrize("name", ["one", "tp2", "pp2", "tp2pp2"])
def test_bit_equal_whatever_the_neighbours(folders, together, name):
    tp, pp, _ = TOPOLOGIES[name]
    for index in (0, 1, 2, 8):
        alone = run_ranks(rows, folders["policy"], [requests()[index]], tp=tp, pp=pp)[0]
        assert alone[f"p{index}", 0] == together[name][f"p{index}", 0]


@pytest.fixture(scope="module")
def cut_in_four(tmp_path_factory):
    """A model that TP4 divides, with a context of many blocks."""
    root = tmp_path_factory.mktemp("wide")
    shape = dataclasses.replace(small_shape(), num_attention_heads=8, num_query_groups=4, seq_length=1024)
    return make_folder(root / "policy", shape, make_tokenizer(root / "t.model"))


def test_bit_equal_where_a_ring_of_ranks_adds_up(cut_in_four):
    every = run_ranks(rows, cut_in_four, requests(), tp=4)[0]
    for index in (0, 8):
        alone = run_ranks(rows, cut_in_four, [requests()[index]], tp=4)[0]
        assert alone[f"p{index}", 0] == every[f"p{index}", 0]


def test_bit_equal_beside_a_row_of_many_more_blocks(cut_in_four):
    shape = {"slots": 4, "prefill_tokens": 512}
    long = [Request(f"p{n}", 0, [10 + (n * place) % 370 for place in range(n)]) for n in (340, 420, 650, 880)]
    for tp in (2, 4):  # numbers per block of 48 and 24
        every = run_ranks(rows, cut_in_four, long, "fp32", shape, tp=tp)[0]
        alone = run_ranks(rows, cut_in_four, long[:1], "fp32", shape, tp=tp)[0]
        assert alone.items() <= every.items()


@pytest.mark.parametrize("name", ["one", "pp2"])
def test_bit_equal_whatever_the_order_of_arrival(folders, together, name):
    tp, pp, _ = TOPOLOGIES[name]
    shuffled = [requests()[i] for i in np.random.default_rng(0).permutation(9)]
    assert run_ranks(rows, folders["policy"], shuffled, tp=tp, pp=pp)[0] == together[name]


def share(mesh, folder):
    return rows(mesh, folder, requests()[mesh.dp_rank :: mesh.dp])


def test_bit_equal_over_dp(folders, together):
    mine, other = run_ranks(share, folders["policy"], dp=2)
    assert mine | other == together["one"] and not mine.keys() & other.keys()


def test_bit_equal_over_restarts(folders, together):
    for part in (slice(0, 4), slice(4, 9)):
        again = run_ranks(rows, folders["policy"], requests()[part])[0]
        assert again == {key: together["one"][key] for key in again}


@pytest.mark.parametrize("name", ["one", "pp2"])
def test_bit_equal_when_samples_share_their_prompt(folders, name):
    tp, pp, _ = TOPOLOGIES[name]
    whole = run_ranks(rows, folders["policy"], requests(samples=3), tp=tp, pp=pp)[0]
    some = [request for request in requests(samples=3) if request.sample == 1 or request.prompt_id == "p2"]
    assert run_ranks(rows, folders["policy"], some, tp=tp, pp=pp)[0] == {
        key: row for key, row in whole.items() if key[1] == 1 or key[0] == "p2"
    }


def test_bit_equal_beside_prompts_with_other_numbers_of_samples(folders):
    few = [Request("few", s, prompt(2), None, 2) for s in range(2)]
    many = [Request("many", s, prompt(5), None, 5) for s in range(5)]
    mixed = run_ranks(rows, folders["policy"], [*many, *few])[0]
    for alone in (few, many):
        assert run_ranks(rows, folders["policy"], alone)[0].items() <= mixed.items()


def test_bit_equal_whether_or_not_a_turn_was_there_before(folders):
    turns = [Request("first", 0, prompt(2)), Request("second", 0, prompt(2) + prompt(0))]
    after = run_ranks(rows, folders["policy"], turns[1:], "fp32", SHAPE, turns[:1])[0]
    assert after == run_ranks(rows, folders["policy"], turns[1:])[0]


def reused(mesh, folder):
    model, tokenizer = load_model(folder, mesh)
    engine = Engine(model, tokenizer, mesh, **SHAPE)
    for request in (Request("first", 0, prompt(2)), Request("second", 0, prompt(2) + prompt(0))):
        engine.submit(replace_sampling(request))
        while not engine.idle:
            engine.step()
    return engine.stats.reused_tokens


def test_that_turn_takes_its_beginning_from_the_first(folders):
    assert run_ranks(reused, folders["policy"])[0] == 128


@pytest.mark.parametrize(
    "shape", [{"slots": 1}, {"slots": 40, "prefill_tokens": 64}, {"slots": 6, "prefill_tokens": 1024, "fixed_shape": False}]
)
def test_equal_over_slot_shapes_in_fp64(folders, shape):
    compare(folders, "fp64", shape)


@pytest.mark.parametrize("name", ["tp2", "pp2", "tp2pp2"])
def test_equal_over_topologies_in_fp64(folders, name):
    tp, pp, _ = TOPOLOGIES[name]
    compare(folders, "fp64", SHAPE, tp=tp, pp=pp)


def compare(folders, dtype, shape, **topology):
    wanted = requests(samples=2)
    reference = run_ranks(rows, folders["policy"], wanted, dtype)[0]
    for other in run_ranks(rows, folders["policy"], wanted, dtype, shape, **topology):
        assert {key: tokens for key, (tokens, _) in other.items()} == {k: t for k, (t, _) in reference.items()}
        for key, (_, log_probs) in other.items():
            np.testing.assert_allclose(log_probs, reference[key][1], rtol=0, atol=1e-9)


def test_generate_gives_what_the_engine_gives(folders):
    made = run_ranks(listed, folders["policy"])[0]
    assert [(g.token_ids, g.logprobs) for g in made] == list(run_ranks(rows, folders["policy"], requests())[0].values())


def listed(mesh, folder):
    model, tokenizer = load_model(folder, mesh, dtype="fp32")
    return generate(model, tokenizer, mesh, requests(), SAMPLING, **SHAPE)
