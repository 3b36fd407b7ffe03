"""The start-up probe, and the clipping that stands in for Megatron's on a CPU."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks

from nemo_sdg.errors import ConfigError
from nemo_sdg.training import cpu, probe


def test_the_installed_pair_is_the_supported_one():
    probe.check()


@pytest.mark.parametrize("other", [{"nemo-toolkit": "2.6.2"}, {"megatron-core": "0.16.0"}, {"megatron-core": None}])
def test_another_pair_is_named_with_the_supported_one(other):
    with pytest.raises(ConfigError) as caught:
        probe.check({**probe.SUPPORTED, **other})
    message = str(caught.value)
    assert "expected nemo-toolkit 2.7.3 with megatron-core 0.15.3" in message
    assert (next(iter(other.values())) or "(missing)") in message
    if None in other.values():
        assert message.endswith("pip install nemo-toolkit==2.7.3 megatron-core==0.15.3")
    else:
        assert "pip install --no-deps nemo-toolkit==2.7.3 megatron-core==0.15.3, which" in message


def test_nothing_is_replaced_where_there_is_a_gpu(monkeypatch):
    from megatron.core.optimizer import optimizer

    before = optimizer.clip_grad_by_total_norm_fp32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with cpu.scope():
        assert optimizer.clip_grad_by_total_norm_fp32 is before


def _clip(mesh) -> tuple[float, list[torch.Tensor]]:
    parameters = [torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2)]
    for parameter, grad in zip(parameters, ([3.0, 0.0], [0.0, 4.0])):
        parameter.grad = torch.tensor(grad, dtype=torch.float64) * (mesh.rank + 1)
    norm = cpu.grad_norm([parameter.grad for parameter in parameters], grad_stats_parallel_group=None)
    cpu.clip_grads(parameters, 1.0, norm)
    return norm, [parameter.grad.tolist() for parameter in parameters]


def test_clipping_known_answer():
    norm, grads = run_ranks(_clip)[0]
    assert norm == 5.0 and grads[0][0] == pytest.approx(0.6, abs=1e-6) and grads[1][1] == pytest.approx(0.8, abs=1e-6)
    norms = [norm for norm, _ in run_ranks(_clip, tp=2)]
    assert norms == [pytest.approx(125**0.5, abs=1e-12)] * 2  # 25 + 100 over both ranks
