"""Where tensors live, and what torch and megatron-core need to run on a CPU.

Megatron-core has no CPU mode: it asks `torch.cuda` for the current device, creates some tensors on the
literal device "cuda" and checks gradients for a CUDA type. Where there is no GPU, `install` answers the
question about the current device once and for all, and `cuda_calls_on_cpu` redirects the rest while a
fit or a checkpoint of NeMo runs. Generation and scoring never enter that scope, so they pay nothing.
Where there is a GPU both do nothing at all.
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any, Callable, Iterator

import torch

# Tensor factories which megatron-core and NeMo call with a literal "cuda" or with pinned memory.
_FACTORIES = ("empty", "zeros", "ones", "full", "tensor", "rand", "randn", "randint", "arange", "as_tensor", "eye")
_FACTORIES += ("empty_like", "zeros_like", "ones_like", "full_like", "empty_strided", "linspace")


def has_cuda() -> bool:
    """Whether this process computes on a GPU."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """The device of this rank's model."""
    return torch.device("cuda", torch.cuda.current_device()) if has_cuda() else torch.device("cpu")


def install() -> None:
    """Prepare this process for megatron-core; call it before the first model is built. Idempotent."""
    if has_cuda():
        return
    # jit_fuser is torch.compile; on a CPU each process would call a C++ compiler for nothing.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    import torch._dynamo.config

    torch._dynamo.config.disable = True
    # RotaryEmbedding and the pipeline's receive buffers ask for it; never called per token.
    torch.cuda.current_device = _current_device  # type: ignore[assignment]


def installed() -> bool:
    """Whether the CPU answers are in place."""
    return torch.cuda.current_device is _current_device


def _current_device() -> str:
    return "cpu"


class _Stream:
    """Stands for CUDA streams and events: work on a CPU is done when the call returns."""

    device = torch.device("cpu")

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def _nothing(self, *args: object, **kwargs: object) -> None:
        return None

    wait_stream = wait_event = synchronize = record = wait = record_event = _nothing

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: object) -> float:
        return 0.0


def _nothing(*args: object, **kwargs: object) -> None:
    return None


def _zero(*args: object, **kwargs: object) -> int:
    return 0


def _is_cuda(where: Any) -> bool:
    if isinstance(where, int) and not isinstance(where, bool):
        return True  # a bare device index means a GPU
    return where is not None and str(where).startswith("cuda")


def _on_cpu(kwargs: dict[str, Any]) -> None:
    if _is_cuda(kwargs.get("device")):
        kwargs["device"] = "cpu"
    kwargs.pop("pin_memory", None)


def _factory(original: Callable) -> Callable:
    @functools.wraps(original)
    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        _on_cpu(kwargs)
        return original(*args, **kwargs)

    return create


def _tensor_to(original: Callable) -> Callable:
    @functools.wraps(original)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and not isinstance(args[0], (torch.dtype, torch.Tensor)) and _is_cuda(args[0]):
            args = ("cpu", *args[1:])
        _on_cpu(kwargs)
        return original(self, *args, **kwargs)

    return to


def _tensor_type(original: Callable) -> Callable:
    @functools.wraps(original)
    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return original(self, *args, **kwargs)
        # Megatron's gradient clipping and optimizers compare this name with the CUDA ones.
        return original(self).replace("torch.", "torch.cuda.", 1)

    return type_


def _replacements() -> list[tuple[object, str, Any]]:
    own = [(torch, name, _factory(getattr(torch, name))) for name in _FACTORIES]
    own += [
        (torch.Tensor, "to", _tensor_to(torch.Tensor.to)),
        (torch.Tensor, "type", _tensor_type(torch.Tensor.type)),
        (torch.Tensor, "cuda", lambda self, *args, **kwargs: self),
        (torch.Tensor, "pin_memory", lambda self, *args, **kwargs: self),
        (torch.nn.Module, "cuda", lambda self, *args, **kwargs: self),
    ]
    cuda = torch.cuda
    own += [
        (cuda, name, _nothing) for name in ("set_device", "synchronize", "empty_cache", "_lazy_init")
    ]
    own += [(cuda, "manual_seed", torch.manual_seed)]  # what Megatron's tracker of random streams begins with
    own += [(cuda, name, _nothing) for name in ("manual_seed_all", "reset_peak_memory_stats", "ipc_collect")]
    own += [(cuda, name, _zero) for name in ("memory_allocated", "max_memory_allocated", "memory_reserved")]
    own += [(cuda, "max_memory_reserved", _zero), (cuda, "memory_stats", lambda *a, **k: {})]
    own += [(cuda, "device_count", lambda: 1)]  # NeMo seeds megatron's RNG tracker only if there is a device
    own += [(cuda, name, _Stream) for name in ("Stream", "Event", "current_stream", "default_stream")]
    own += [(cuda, "stream", lambda *a, **k: contextlib.nullcontext())]
    own += [(cuda.nvtx, name, _nothing) for name in ("range_push", "range_pop", "mark")]
    own += [(cuda, "FloatTensor", torch.FloatTensor), (cuda, "LongTensor", torch.LongTensor)]
    own += [(cuda, "IntTensor", torch.IntTensor), (cuda, "ByteTensor", torch.ByteTensor)]
    for module in (cuda, cuda.random):
        own += [(module, "get_rng_state", lambda *a, **k: torch.get_rng_state())]
        own += [(module, "set_rng_state", lambda state, *a, **k: torch.set_rng_state(state))]
    from megatron.core.tensor_parallel import random as megatron_random

    own += [(megatron_random, "_get_cuda_rng_state", lambda *a, **k: torch.get_rng_state())]
    own += [(megatron_random, "_set_cuda_rng_state", lambda state, *a, **k: torch.set_rng_state(state))]
    return own


_depth = 0


@contextlib.contextmanager
def cuda_calls_on_cpu() -> Iterator[None]:
    """Redirect CUDA calls of megatron-core and NeMo to the CPU within this scope; nothing where there is a GPU.

    Covers factories and moves to "cuda", pinned memory, streams, events, memory statistics, the CUDA random
    state and the type names that Megatron's optimizer asserts. Re-entrant.
    """
    global _depth
    if has_cuda():
        yield
        return
    install()
    replaced = []
    if _depth == 0:
        for owner, name, new in _replacements():
            # What torch.Tensor inherits is deleted again afterwards, not set to its own bound copy.
            replaced.append(
                (
                    owner,
                    name,
                    owner.__dict__.get(name, _MISSING) if isinstance(owner, type) else getattr(owner, name, _MISSING),
                )
            )
            setattr(owner, name, new)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        for owner, name, old in reversed(replaced):
            if old is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, old)


_MISSING = object()
