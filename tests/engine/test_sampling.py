"""Known answers of sampling: which token a number in [0, 1) chooses."""

from __future__ import annotations

import pytest
import torch

from nemo_sdg.engine.sampling import Sampling, choose

PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
LOGITS = PROBABILITIES.log()


def chosen(numbers, **settings):
    rows = LOGITS.expand(len(numbers), -1)
    return choose(rows, torch.tensor(numbers, dtype=torch.float64), Sampling(max_tokens=1, **settings)).tolist()


def test_the_cumulative_distribution_is_inverted():
    assert chosen([0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.6999, 0.7001, 0.999999]) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_greedy():
    assert chosen([0.0, 0.5, 0.999], temperature=0.0) == [1, 1, 1]


def test_top_k_keeps_the_most_probable():
    # 0.4 and 0.3 stay: token 1 up to 4/7, then token 3.
    assert chosen([0.0, 0.571, 0.572, 0.999], top_k=2) == [1, 1, 3, 3]


@pytest.mark.parametrize("top_p, kept", [(0.39, {1}), (0.41, {1, 3}), (0.71, {1, 3, 2}), (1.0, {0, 1, 2, 3})])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    numbers = [i / 500 for i in range(500)]
    assert set(chosen(numbers, top_p=top_p)) == kept


def test_temperature_sharpens_and_flattens():
    numbers = [i / 1000 for i in range(1000)]
    cold, warm = (chosen(numbers, temperature=t).count(1) for t in (0.5, 2.0))
    squares, roots = PROBABILITIES.square(), PROBABILITIES.sqrt()
    assert cold == pytest.approx(1000 * float(squares[1] / squares.sum()), abs=1.5)
    assert warm == pytest.approx(1000 * float(roots[1] / roots.sum()), abs=1.5)


def test_a_token_without_mass_is_never_chosen():
    logits = torch.tensor([[0.0, -float("inf"), 0.0, -float("inf")]] * 3)
    numbers = torch.tensor([0.0, 0.5, 1.0 - 2**-53], dtype=torch.float64)
    assert choose(logits, numbers, Sampling(max_tokens=1)).tolist() == [0, 2, 2]
