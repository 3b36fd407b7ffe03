"""Known answers of sampling: which token a number in [0, 1) chooses, alone and over shards of the vocabulary."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ranks import run_ranks

from nemo_sdg.engine import sampling as module
from nemo_sdg.engine.sampling import Choice, Sampling, Shard, choose

PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
LOGITS = PROBABILITIES.log()


def chosen(numbers, *, logits=LOGITS, **settings):
    choices = [Choice(Sampling(max_tokens=1, **settings), number) for number in numbers]
    return choose(logits.expand(len(numbers), -1), choices)[0].tolist()


def test_the_cumulative_distribution_is_inverted():
    assert chosen([0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.6999, 0.7001, 0.999999]) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_greedy():
    assert chosen([0.0, 0.5, 0.999], temperature=0.0) == [1, 1, 1]


def test_of_equals_greedy_takes_the_first():
    assert chosen([0.5], temperature=0.0, logits=torch.zeros(1, 9)) == [0]


def test_top_k_keeps_the_most_probable():
    # 0.4 and 0.3 stay: token 1 up to 4/7, then token 3.
    assert chosen([0.0, 0.571, 0.572, 0.999], top_k=2) == [1, 1, 3, 3]


NUMBERS = [i / 500 for i in range(500)]


@pytest.mark.parametrize("top_p, kept", [(0.39, {1}), (0.41, {1, 3}), (0.71, {1, 3, 2}), (1.0, {0, 1, 2, 3})])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    assert set(chosen(NUMBERS, top_p=top_p)) == kept


def test_top_p_is_of_what_top_k_leaves():
    assert set(chosen(NUMBERS, top_k=3, top_p=0.7)) == {1, 3}, "0.4 / 0.9 does not reach 0.7, (0.4 + 0.3) / 0.9 does"


@pytest.mark.parametrize("min_p, kept", [(0.26, {1, 2, 3}), (0.51, {1, 3}), (0.76, {1}), (1.0, {1})])
def test_min_p_is_a_share_of_the_highest(min_p, kept):
    assert set(chosen(NUMBERS, min_p=min_p)) == kept
    assert set(chosen(NUMBERS, min_p=min_p, top_k=2)) == kept & {1, 3}


def test_temperature_sharpens_and_flattens():
    numbers = [i / 1000 for i in range(1000)]
    cold, warm = (chosen(numbers, temperature=t).count(1) for t in (0.5, 2.0))
    squares, roots = PROBABILITIES.square(), PROBABILITIES.sqrt()
    assert cold == pytest.approx(1000 * float(squares[1] / squares.sum()), abs=1.5)
    assert warm == pytest.approx(1000 * float(roots[1] / roots.sum()), abs=1.5)


def test_a_token_without_mass_is_never_chosen():
    logits = torch.tensor([0.0, -30000.0, 0.0, -30000.0], dtype=torch.float64)
    assert chosen([0.0, 0.5, 1.0 - 2**-53], logits=logits) == [0, 2, 2]


def test_each_row_has_its_own_settings():
    settings = [{"temperature": 0.0}, {}, {"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.9}]
    choices = [Choice(Sampling(max_tokens=1, **one), 0.05) for one in settings]
    assert choose(LOGITS.expand(5, -1), choices)[0].tolist() == [1, 0, 1, 1, 1]


def test_the_penalty_divides_positive_and_multiplies_negative_logits():
    logits = torch.tensor([[2.0, 1.5, -1.0, -1.4]], dtype=torch.float64)
    settings = Sampling(max_tokens=1, temperature=0.0, repetition_penalty=1.5)

    def greedy(seen, rows=logits):
        return choose(rows, [Choice(settings, 0.0, seen=np.array(seen))])[0].tolist()

    assert greedy([]) == [0] and greedy([0]) == [1], "2 / 1.5 is below 1.5"
    assert greedy([0, 1]) == [0]
    assert greedy([2], torch.tensor([[-2.0, -1.6, -1.0, -1.4]])) == [3], "-1 x 1.5 is below -1.4"


def test_a_token_that_may_not_come_yet():
    settings = Sampling(max_tokens=1, temperature=0.0)
    assert choose(LOGITS[None], [Choice(settings, 0.0, stop_ids=(1, 3))])[0].tolist() == [2]
    free = choose(LOGITS.expand(2, -1), [Choice(settings, 0.0, stop_ids=(1,)), Choice(settings, 0.0)])[0]
    assert free.tolist() == [3, 1], "what is barred for one row is not for the others"


def test_log_probabilities_are_the_models_own():
    settings = Sampling(max_tokens=1, temperature=0.3, top_k=1, repetition_penalty=9.0, logprobs=True)
    token, log_prob = choose(LOGITS[None] + 5, [Choice(settings, 0.0, seen=np.array([3]))])
    assert token.tolist() == [1] and log_prob.tolist() == pytest.approx([math.log(0.4)])
    assert choose(LOGITS[None], [Choice(Sampling(max_tokens=1), 0.0)])[1].tolist() == [0.0], "nobody asked"


def test_a_row_alone_is_added_up_as_among_others():
    """Of a large vocabulary, by several threads."""

    def differ(mesh) -> list[int]:
        torch.set_num_threads(2)
        torch.manual_seed(0)
        logits_RV = torch.randn(80, 50_257) * 3
        choices = [Choice(Sampling(max_tokens=4, logprobs=True), row / 80) for row in range(80)]
        together = choose(logits_RV, choices)[1]
        return [row for row in range(80) if choose(logits_RV[[row]], choices[row : row + 1])[1] != together[row]]

    assert run_ranks(differ) == [[]]


def test_what_is_not_finite_is_told_by_row():
    logits = LOGITS.repeat(3, 1)
    logits[1, 2] = float("nan")
    choices = [Choice(Sampling(max_tokens=1, temperature=0.0), 0.0)] * 3
    assert choose(logits, choices)[0].tolist() == [1, -1, 1]


# Over shards: the same tokens, without the vocabulary being gathered.

VOCABULARY, ROWS = 1001, 48
SETTINGS = [
    {"temperature": 0.0}, {}, {"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 50, "top_p": 0.9}, {"min_p": 0.2},
    {"top_p": 0.999, "temperature": 3.0}, {"min_p": 0.01, "top_p": 0.95}, {"repetition_penalty": 1.7},
]  # fmt: skip


def problem():
    generator = torch.Generator().manual_seed(0)
    logits_RV = torch.randn((ROWS, VOCABULARY), generator=generator, dtype=torch.float64) * 2
    logits_RV[:, 700] = logits_RV[:, 3] = logits_RV.amax(dim=-1)  # equals in different shards
    logits_RV[5, 900] = float("nan")
    numbers = torch.rand(ROWS, generator=generator, dtype=torch.float64).tolist()
    choices = [
        Choice(
            Sampling(max_tokens=1, logprobs=True, **SETTINGS[row % len(SETTINGS)]), numbers[row],
            stop_ids=(3, 700) if row % 3 == 0 else (), seen=np.arange(0, VOCABULARY, 3),
        )
        for row in range(ROWS)
    ]  # fmt: skip
    return logits_RV, choices


def choose_in_shards(mesh):
    logits_RV, choices = problem()
    size = -(-VOCABULARY // mesh.tp)
    padded_RV = torch.nn.functional.pad(logits_RV, (0, size * mesh.tp - VOCABULARY), value=-torch.inf)
    padding = max(0, size * (mesh.tp_rank + 1) - VOCABULARY)
    shard = Shard(size * mesh.tp_rank, padding, mesh.tp, mesh.tp_group if mesh.tp > 1 else None)
    widest, gather = [0], Shard.gather
    Shard.gather = lambda self, values: widest.append(values.shape[-1]) or gather(self, values)
    local_RV = padded_RV[:, size * mesh.tp_rank : size * (mesh.tp_rank + 1)]
    try:
        module._CANDIDATES = 64
        parts = [choose(local_RV[rows], [choices[row] for row in rows], shard) for rows in PARTS]
        return [(tokens.tolist(), log_probs.tolist()) for tokens, log_probs in parts], max(widest)
    finally:
        Shard.gather = gather


PARTS = [list(range(ROWS)), [row for row in range(ROWS) if row % len(SETTINGS) in (0, 1, 2, 3, 6, 9)]]


@pytest.mark.parametrize("tp", [2, 4])
def test_shards_choose_what_the_whole_vocabulary_does(tp):
    alone = run_ranks(choose_in_shards)[0]
    for parts, _ in run_ranks(choose_in_shards, tp=tp):
        for (tokens, log_probs), (expected, expected_log_probs) in zip(parts, alone[0]):
            assert tokens == expected and len(set(expected)) > 10
            np.testing.assert_allclose(log_probs, expected_log_probs, rtol=0, atol=1e-12)


def gathered(mesh):
    logits_RV, choices = problem()
    size = 512
    padded_RV = torch.nn.functional.pad(logits_RV, (0, 2 * size - VOCABULARY), value=-torch.inf)
    shard = Shard(size * mesh.tp_rank, 23 * mesh.tp_rank, 2, mesh.tp_group)
    seen, gather = [], Shard.gather
    Shard.gather = lambda self, values: seen.append(values.shape[-1]) or gather(self, values)
    widths = {}
    for kind in range(len(SETTINGS)):
        seen.clear()
        choose(padded_RV[kind::10, size * mesh.tp_rank : size * (mesh.tp_rank + 1)], choices[kind::10], shard)
        widths[kind] = max(seen)
    Shard.gather = gather
    return widths


def test_only_a_nucleus_that_is_wide_gathers_the_vocabulary():
    widths = run_ranks(gathered, tp=2)[0]
    assert {kind for kind, width in widths.items() if width > 256} == {7}, "top-p 0.999 at temperature 3"
    assert {widths[kind] for kind in (0, 1, 2, 6, 9)} == {1}, "greedy, temperature, min-p and penalty: one number a row"
