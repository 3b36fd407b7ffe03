"""The model as it trains, without packs and without a cache: what the engine is held against. Axes: S sequence, B rows, E hidden size."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_sdg.parallel import device
from nemo_sdg.parallel.mesh import Mesh


def forward(model: torch.nn.Module, mesh: Mesh, ids_BS: Tensor, **inputs: Any) -> Tensor | None:
    """What the last stage computes for these tokens, None on the other stages.

    Every rank of the replica calls it with the same tokens, so shapes need not be sent.
    """
    if not mesh.first_stage:
        num_rows, length = ids_BS.shape
        hidden_SBE = torch.empty(
            (length, num_rows, model.config.hidden_size), dtype=model.config.params_dtype, device=device.device()
        )
        dist.recv(hidden_SBE, dist.get_global_rank(mesh.pp_group, mesh.pp_rank - 1), group=mesh.pp_group)
        model.set_input_tensor(hidden_SBE)
    output = model(ids_BS, None, None, **inputs)
    if mesh.last_stage:
        return output
    dist.send(output.contiguous(), dist.get_global_rank(mesh.pp_group, mesh.pp_rank + 1), group=mesh.pp_group)
    return None


def gather_vocabulary(logits_BV_local: Tensor, mesh: Mesh, vocab_size: int) -> Tensor:
    """Logits over the whole vocabulary [B, V] from the tensor-parallel shards, without their padding."""
    if mesh.tp == 1:
        return logits_BV_local
    shards = [torch.empty_like(logits_BV_local) for _ in range(mesh.tp)]
    dist.all_gather(shards, logits_BV_local.contiguous(), group=mesh.tp_group)
    return torch.cat(shards, dim=-1)[..., :vocab_size]
