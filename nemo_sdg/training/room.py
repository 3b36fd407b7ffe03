"""Room on the disk for a checkpoint: how much it takes, asked before anything is written, and told when it is gone."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import distributed as dist

from nemo_sdg.console import size_text
from nemo_sdg.errors import StoreError
from nemo_sdg.parallel import device
from nemo_sdg.parallel.mesh import Mesh

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def bytes_needed(parameters: Iterable[torch.nn.Parameter], mesh: Mesh, *, optimizer: bool) -> int:
    """Bytes of the tensors that the ranks of one replica write, the same on every rank.

    Args:
        parameters: this rank's.
        optimizer: of a restart point: what is trained, with Adam's two moments and fp32 main weights of half
            precisions; of a trained model: all of it.
    """
    total = 0
    for parameter in parameters if mesh.dp_rank == 0 else ():
        if mesh.tp_rank == 0 or getattr(parameter, "tensor_model_parallel", False):
            size = parameter.element_size()
            if not optimizer:
                total += parameter.numel() * size
            elif parameter.requires_grad:
                total += parameter.numel() * (size + (12 if size < 4 else 2 * size))
    if mesh.world_size > 1:
        summed = torch.tensor([total], device=device.device())
        dist.all_reduce(summed, group=mesh.whole_group)
        total = int(summed)
    return total


def require(where: Path, needed: int, what: str, way_out: str) -> None:
    """Raises StoreError unless the disk has `needed` bytes free."""
    if free_bytes(where) < needed:
        raise _refusal(where, needed, what, way_out)


@contextlib.contextmanager
def explained(where: Path, needed: int, what: str, way_out: str) -> Iterator[None]:
    """A disk that is full all the same, or a quota that is spent, is told in the same words.

    Any exception of this block may have hidden it: torch's writers tell the error as text, Megatron as a table.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error, where):
            raise
        raise _refusal(where, needed, what, way_out) from error


def free_bytes(where: Path) -> int:
    """Bytes that this user may still write to the disk of a folder."""
    found = os.statvfs(where)
    return found.f_bavail * found.f_frsize


def _refusal(where: Path, needed: int, what: str, way_out: str) -> StoreError:
    free = free_bytes(where)
    missing = f", {size_text(needed - free)} too few" if free < needed else " and a limit on what may be written"
    return StoreError(
        f"{what} does not fit on the disk", where=where, found=f"{size_text(free)} free{missing}",
        expected=f"{size_text(needed)}", way_out=way_out,
    )  # fmt: skip


def is_full(error: BaseException, where: Path) -> bool:
    """Whether an error, or what it was made of, comes from a disk or a quota without room."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in _FULL:
            return True
        if any(os.strerror(number) in str(one) for number in _FULL):
            return True
        waiting += [one.__cause__, one.__context__]
    # PyTorch's archive writer says no more than that it failed.
    return "PytorchStreamWriter" in str(error) and free_bytes(where) < 1 << 20
