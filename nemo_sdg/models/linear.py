"""Megatron's parallel linears, with a short way where nothing is to be learned.

Their forward prepares for a backward pass in each call, also when there is none; in a decode step, which calls hundreds of them for
a few tokens each, that is a good part of the time. Axes: S tokens, B rows, I and O channels in and out; `_local` is a
tensor-parallel shard.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor

_FEW = 256
"""Tokens up to which a CPU multiplies faster with the weights on the left."""


def _product(x_SBI: Tensor, weight_OI: Tensor) -> Tensor:
    tokens = x_SBI.size(0) * x_SBI.size(1)
    # In fp64, and for a number that four does not divide, that product rounds by where a token stands among the others.
    if x_SBI.is_cuda or x_SBI.dtype is not torch.float32 or tokens > _FEW or tokens % 4:
        return torch.nn.functional.linear(x_SBI, weight_OI)
    made_OT = torch.mm(weight_OI, x_SBI.flatten(0, 1).t())
    return made_OT.t().contiguous().view(*x_SBI.shape[:2], -1)


class ColumnParallel(ColumnParallelLinear):
    """Each rank makes its own output channels."""

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        if torch.is_grad_enabled() or self.sequence_parallel or self.bias is not None or args or kwargs:
            return super().forward(input_, *args, **kwargs)
        return _product(input_, self.weight), None


class RowParallel(RowParallelLinear):
    """Each rank has its own input channels; the outputs are summed over the ranks."""

    def forward(self, input_: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled() or self.sequence_parallel or self.bias is not None:
            return super().forward(input_)
        made_SBO = _product(input_, self.weight)
        if self.tp_group.size() == 2:
            dist.all_reduce(made_SBO, group=self.tp_group)
        elif self.tp_group.size() > 2:
            # A ring adds up the ranks' parts in an order that follows from the place of a number in memory: channel by
            # channel, so that it does not follow from the place of a token among the others.
            made_OBS = made_SBO.transpose(0, 2).contiguous()
            dist.all_reduce(made_OBS, group=self.tp_group)
            made_SBO = made_OBS.transpose(0, 2).contiguous()
        return made_SBO, None
