"""Packed forward passes through the pipeline stages without gradients, several under way at a time.

Hidden states go from stage to stage without waiting for the next stage to be free. What the last stage has chosen,
a few numbers per row, goes straight to every other stage. Axes: N tokens, E hidden size.
"""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_sdg.models.attention import KeyValues
from nemo_sdg.parallel import device
from nemo_sdg.parallel.mesh import Mesh


class Pipeline:
    """This rank's stage of the model, and its messages to the other stages."""

    def __init__(self, model: torch.nn.Module, mesh: Mesh, tag: int = 0) -> None:
        """
        Args:
            tag: tells the results of one pipeline from those of another that runs between its passes.
        """
        self.model, self.mesh, self._tag = model, mesh, tag
        self._results = _result_group(mesh)
        self._passes = 0
        self._sent: deque[tuple[int, Any, Tensor]] = deque()
        """The pass that each message belongs to, what is sending it, and the tensor, which is kept until it has gone."""

    def forward(self, token_ids: list[int], size: int, context: KeyValues) -> Tensor | None:
        """What the last stage computes for a packed sequence, None on the other stages.

        Every rank of the replica calls it with the same tokens, so shapes need not be sent; and with no more passes under
        way than there are stages, so that what the pass before these has sent was heard.

        Args:
            size: tokens of the pass; behind the given ones it is padded.
        """
        mesh, at = self.mesh, device.device()
        self._passes += 1
        while self._sent and self._sent[0][0] <= self._passes - mesh.pp:
            self._sent.popleft()[1].wait()
        ids_1N = torch.zeros((1, size), dtype=torch.long)
        ids_1N[0, : len(token_ids)] = torch.tensor(token_ids, dtype=torch.long)
        if not mesh.first_stage:
            config = self.model.config
            hidden_N1E = torch.empty((size, 1, config.hidden_size), dtype=config.params_dtype, device=at)
            dist.recv(hidden_N1E, dist.get_global_rank(mesh.pp_group, mesh.pp_rank - 1), group=mesh.pp_group)
            self.model.set_input_tensor(hidden_N1E)
        output = self.model(ids_1N.to(at), None, None, inference_context=context)
        if mesh.last_stage:
            return output
        self._send(output.contiguous(), mesh.pp_rank + 1, mesh.pp_group)
        return None

    def tell(self, result: Tensor) -> None:
        """The last stage sends what it has chosen, on the CPU, to the others."""
        for stage in range(self.mesh.pp - 1):
            self._send(result, stage, self._results, self._tag)

    def hear(self, result: Tensor) -> Tensor:
        """The other stages fill `result`, on the CPU, with the oldest that they have not heard yet."""
        dist.recv(result, dist.get_global_rank(self.mesh.pp_group, self.mesh.pp - 1), group=self._results, tag=self._tag)
        return result

    def drain(self) -> None:
        """Wait until the other stages have taken everything."""
        while self._sent:
            self._sent.popleft()[1].wait()

    def _send(self, tensor: Tensor, stage: int, group: Any, tag: int = 0) -> None:
        to = dist.get_global_rank(self.mesh.pp_group, stage)
        self._sent.append((self._passes, dist.isend(tensor, to, group=group, tag=tag), tensor))


_result_groups: dict[tuple[int, ...], Any] = {}


def _result_group(mesh: Mesh) -> Any:
    """The group that results travel in. On GPUs it is one of gloo's: they are wanted on the host, and between two ranks NCCL
    carries out its messages in one order, in which theirs and those of hidden states would wait for each other."""
    if mesh.pp == 1 or not device.has_cuda():
        return mesh.pp_group
    ranks = tuple(dist.get_process_group_ranks(mesh.pp_group))
    if ranks not in _result_groups:
        _result_groups[ranks] = dist.new_group(
            list(ranks), timedelta(seconds=mesh.timeout_s), backend="gloo", use_local_synchronization=True
        )
    return _result_groups[ranks]
