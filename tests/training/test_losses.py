"""Losses against numbers worked out by hand and against torch's own log-softmax."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_sdg.training import losses


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_attribute_regression_ignores_missing_entries():
    pred = tensor(3.0, 1.0, 7.0, float("inf")).reshape(2, 2).detach().requires_grad_()
    label = torch.tensor([[1.0, 1.0], [-100.0, -100.0]], dtype=torch.float64)
    loss = losses.attribute_regression(pred, label)
    assert loss.item() == 2.0  # (4 + 0) / 2, not / 4
    loss.backward()
    assert pred.grad.tolist() == [[2.0, 0.0], [0.0, 0.0]]


def test_attribute_regression_of_nothing_is_zero():
    pred = tensor(1.0, 2.0)
    loss = losses.attribute_regression(pred, torch.full((2,), -100.0))
    loss.backward()
    assert loss.item() == 0.0 and pred.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "kind, strength, expected",
    [
        ("regular", None, math.log(2)),
        ("margin", 2.0, math.log(1 + math.exp(2))),
        ("scaled", 3.0, 3 * math.log(2)),
    ],
)
def test_bradley_terry_of_equal_rewards(kind, strength, expected):
    strength = None if strength is None else tensor(strength)
    assert losses.bradley_terry(tensor(1.5), tensor(1.5), strength, kind).item() == pytest.approx(expected, abs=1e-15)


def test_bradley_terry_says_what_it_needs():
    with pytest.raises(ValueError, match="margin.*needs"):
        losses.bradley_terry(tensor(1.0), tensor(0.0), kind="margin")
    with pytest.raises(ValueError, match="expected regular, margin or scaled"):
        losses.bradley_terry(tensor(1.0), tensor(0.0), kind="hinge")


def test_dpo_known_answers():
    same = tensor(-3.0, -5.0)
    assert losses.dpo(same, same, same, same, beta=0.1).item() == pytest.approx(math.log(2), abs=1e-15)
    loss = losses.dpo(tensor(-1.0), tensor(-4.0), tensor(-2.0), tensor(-3.0), beta=0.5)  # margin 1 - (-1) = 2
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.0)), abs=1e-15)


def test_rpo_is_zero_where_the_gaps_agree_and_dpo_where_the_reward_gap_is_endless():
    policy_chosen, policy_rejected = tensor(-1.0), tensor(-4.0)
    chosen, rejected = tensor(-2.0), tensor(-3.0)  # policy gap 2
    logs = (policy_chosen, policy_rejected, chosen, rejected)
    agree = losses.rpo(*logs, tensor(3.0), tensor(2.0), beta=0.5, eta=1.0)
    agree.backward()
    assert agree.item() == pytest.approx(0.0, abs=1e-15)
    assert policy_chosen.grad.item() == pytest.approx(0.0, abs=1e-15)
    endless = losses.rpo(*logs, tensor(1e4), tensor(0.0), beta=0.5)
    assert endless.item() == pytest.approx(losses.dpo(*logs, beta=0.5).item(), abs=1e-15)
    p, q = 1 / (1 + math.exp(-2)), 0.5  # b = 2, a = 0: KL(p || q) by hand
    by_hand = p * math.log(p / q) + (1 - p) * math.log((1 - p) / q)
    equal = losses.rpo(chosen, rejected, chosen, rejected, tensor(2.0), tensor(1.0), beta=0.5, eta=2.0)
    assert equal.item() == pytest.approx(by_hand, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_log_probs_on_one_rank(dtype):
    torch.manual_seed(0)
    logits = (torch.randn(2, 3, 11, dtype=torch.float64) * 4).to(dtype).requires_grad_()
    target = torch.randint(11, (2, 3))
    weight = torch.randn(2, 3, dtype=torch.float64)
    found = losses.vocab_parallel_log_probs(logits, target, None)
    (found * weight).sum().backward()
    exact = logits.detach().double().requires_grad_()
    expected = exact.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    (expected * weight).sum().backward()
    tolerance = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    assert found.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert (found.double() - expected).abs().max() < min(tolerance, 2e-6)
    assert (logits.grad.double() - exact.grad).abs().max() < tolerance
