"""What NeMo and Megatron's optimizer and checkpoint code need on a CPU; nothing here acts where there is a GPU.

`parallel.device` answers the CUDA calls themselves. What is left, found by running NeMo 2.7.3:
* loading a checkpoint asserts that CUDA is initialised;
* saving starts a manager process and one writer process per file, which a synchronous save does not need;
* clipping computes the norm in fp32 whatever the gradients are, so topologies would part in fp64.
"""

from __future__ import annotations

import contextlib
import queue
from typing import Any, Iterator

import torch
from torch import Tensor

from nemo_sdg.parallel import device


@contextlib.contextmanager
def scope() -> Iterator[None]:
    """Within it NeMo trains, saves and loads on a CPU; nothing changes where there is a GPU."""
    if device.has_cuda():
        yield
        return
    replaced = []
    for owner, name, new in _replacements():
        replaced.append((owner, name, owner.__dict__[name]))
        setattr(owner, name, new)
    try:
        with device.cuda_calls_on_cpu():
            yield
    finally:
        for owner, name, old in reversed(replaced):
            setattr(owner, name, old)


def _replacements() -> list[tuple[Any, str, Any]]:
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.optimizer import optimizer
    from nemo.lightning.io import pl

    return [
        (pl, "_fix_tensors_device", lambda checkpoint: checkpoint),
        (filesystem_async, "_results_queue", queue.Queue()),
        (filesystem_async.FileSystemWriterAsync, "write_preloaded_data_multiproc", staticmethod(_write_here)),
        (optimizer, "get_grad_norm_fp32", grad_norm),
        (optimizer, "clip_grad_by_total_norm_fp32", clip_grads),
    ]


def _write_here(transforms: list, use_msc: bool, rank: int, write_buckets: list, results: queue.Queue) -> None:
    """Write this rank's files in this process.

    Megatron forks a writer per file so that training can go on meanwhile. In a synchronous save that only
    costs time, and a forked writer inherits gloo's sockets: peers of a killed rank would not see it die.
    """
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    written: dict[int, Any] | Exception = {}
    for index, bucket in enumerate(write_buckets):
        outcome, running = queue.Queue(), queue.Queue()
        running.put(index)
        FileSystemWriterAsync.write_preloaded_data(transforms, index, bucket, outcome, running, use_fsync=True)
        _, result = outcome.get_nowait()
        if isinstance(result, Exception):
            written = result
            break
        written[index] = result
    results.put(written)


def grad_norm(grads_for_norm: list[Tensor], norm_type: float = 2, grad_stats_parallel_group: Any = None) -> float:
    """The 2-norm of all gradients over the ranks of the group, in the gradients' own dtype but at least fp32."""
    assert norm_type == 2
    dtype = torch.float64 if any(grad.dtype == torch.float64 for grad in grads_for_norm) else torch.float32
    total = torch.zeros(1, dtype=torch.float64)
    for grad in grads_for_norm:
        total += grad.detach().to(dtype).square().sum()
    torch.distributed.all_reduce(total, group=grad_stats_parallel_group)
    return total.sqrt().item()


def clip_grads(parameters: list[Tensor], max_norm: float, total_norm: float, use_decoupled_grad: bool = False) -> None:
    """Scale the gradients in place so that their norm is `max_norm` at most; the same rule as Megatron's."""
    assert not use_decoupled_grad
    scale = max_norm / (total_norm + 1.0e-6)
    if scale < 1.0:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
