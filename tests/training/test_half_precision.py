"""The losses in bf16, whose products a GPU rounds in its own way: the same known answers. Uses a GPU where there is one."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_sdg.parallel import device
from nemo_sdg.training import losses

pytestmark = pytest.mark.gpu
BF16 = 2**-8
"""Relative step of bf16."""


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bfloat16, device=device.device(), requires_grad=True)


def test_uniform_logits_give_the_log_of_the_vocabulary():
    logits_BSV = torch.zeros(2, 3, 1000, dtype=torch.bfloat16, device=device.device(), requires_grad=True)
    target_BS = torch.tensor([[0, 1, 999], [5, 5, 5]], device=device.device())
    log_probs_BS = losses.vocab_parallel_log_probs(logits_BSV, target_BS, None)
    assert log_probs_BS.dtype == torch.float32  # half precisions are added up in fp32
    assert log_probs_BS.tolist() == [[pytest.approx(-math.log(1000), abs=1e-5)] * 3] * 2
    log_probs_BS.sum().backward()
    assert logits_BSV.grad.dtype == torch.bfloat16
    assert logits_BSV.grad[0, 0, 0].item() == pytest.approx(1 - 1e-3, rel=BF16)
    assert logits_BSV.grad[0, 0, 1].item() == pytest.approx(-1e-3, rel=BF16)


def test_equal_rewards_give_the_log_of_two():
    for kind, strength, expected in (("regular", None, 1), ("scaled", tensor(3.0), 3)):
        loss = losses.bradley_terry(tensor(1.5), tensor(1.5), strength, kind)
        assert loss.item() == pytest.approx(expected * math.log(2), rel=BF16)
    same = tensor(-3.0, -5.0)
    assert losses.dpo(same, same, same, same, beta=0.1).item() == pytest.approx(math.log(2), rel=BF16)


def test_equal_gaps_give_nothing_and_missing_labels_no_gradient():
    rewards = (tensor(3.0), tensor(1.0))
    loss = losses.rpo(tensor(-2.0), tensor(-6.0), tensor(-3.0), tensor(-5.0), *rewards, beta=1.0)
    assert loss.item() == 0.0
    pred = torch.tensor([[1.0, float("inf")]], dtype=torch.bfloat16, device=device.device(), requires_grad=True)
    losses.attribute_regression(pred, torch.tensor([[3.0, -100.0]], device=device.device())).backward()
    assert pred.grad.tolist() == [[-4.0, 0.0]]
