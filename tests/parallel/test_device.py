"""The CPU layer redirects what Megatron asks of CUDA, leaves no trace, and does nothing where there is a GPU."""

from __future__ import annotations

import timeit

import torch

from nemo_sdg.parallel import device

WATCHED = [(torch, name) for name in device._FACTORIES]
WATCHED += [(torch.Tensor, name) for name in ("to", "type", "cuda", "pin_memory")]
WATCHED += [(torch.cuda, name) for name in ("current_device", "synchronize", "Stream", "device_count", "get_rng_state")]


def test_cuda_calls_land_on_the_cpu():
    with device.cuda_calls_on_cpu():
        made = [
            torch.zeros(2, device="cuda"),
            torch.tensor([1.0], device=torch.device("cuda", 0), pin_memory=True),
            torch.ones(2).to("cuda", non_blocking=True),
            torch.ones(2).to(device="cuda:0", dtype=torch.float64),
            torch.ones(2).cuda().pin_memory(),
            torch.empty(1, device=torch.cuda.current_device()),
        ]
        assert {tensor.device.type for tensor in made} == {"cpu"}
        assert made[3].dtype == torch.float64
        assert torch.ones(1).type() == "torch.cuda.FloatTensor"
        assert torch.ones(1).to(torch.float64).dtype == torch.float64
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.synchronize()


def test_nothing_is_left_behind():
    device.install()
    before = [getattr(owner, name) for owner, name in WATCHED]
    with device.cuda_calls_on_cpu(), device.cuda_calls_on_cpu():
        assert torch.zeros is not before[device._FACTORIES.index("zeros")]
    assert [getattr(owner, name) for owner, name in WATCHED] == before
    assert "to" not in torch.Tensor.__dict__


def test_inactive_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    before = [getattr(owner, name) for owner, name in WATCHED]
    device.install()
    with device.cuda_calls_on_cpu():
        assert [getattr(owner, name) for owner, name in WATCHED] == before
    assert not device.installed()


def test_generation_and_scoring_never_enter_the_scope():
    """No module of the engine uses the redirection, so its loops call torch's own functions."""
    from pathlib import Path

    engine = Path(device.__file__).parents[1] / "engine"
    sources = {path.name: path.read_text() for path in engine.glob("*.py")}
    assert len(sources) > 5
    assert not [name for name, text in sources.items() if "cuda_calls_on_cpu" in text]
    device.install()
    assert not isinstance(torch.zeros, type(timeit.timeit))  # a builtin of torch, not a Python wrapper
