"""Rank grids: tensor x data x pipeline. The job's own lies over megatron's `parallel_state`, which training uses;
others, for phases that want another TP x PP or only some of the ranks, have groups of their own beside it.

Megatron orders ranks tp-dp-pp: neighbours share a tensor-parallel group, then come the data-parallel
replicas, and the pipeline stages are farthest apart (megatron/core/parallel_state.py: order "tp-cp-ep-dp-pp").
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from nemo_sdg.config import Topology
from nemo_sdg.parallel import device, interface, stopping
from nemo_sdg.parallel.rendezvous import fresh_store, job_store
from nemo_sdg.parallel.topology import Grid, data_parallel_size
from nemo_sdg.parallel.watch import LostPeer


@dataclass(frozen=True)
class Mesh:
    """This rank's place in a grid, and the groups it talks to.

    Ranks are numbered within the grid, from 0; `first` says which rank of the job that is.
    """

    tp: int
    pp: int
    dp: int
    tp_rank: int
    pp_rank: int
    dp_rank: int
    rank: int
    tp_group: Any
    pp_group: Any
    dp_group: Any
    timeout_s: float
    first_stage_layers: int | None = None
    last_stage_layers: int | None = None
    first: int = 0
    whole_group: Any = None
    """All ranks of the grid; None is all ranks of the job."""
    replica_group: Any = None
    """The tp x pp ranks that hold one copy of the model."""
    groups: Any = None
    """Megatron's ProcessGroupCollection for the models of this grid; None is what `parallel_state` has."""

    @property
    def uneven_stages(self) -> dict[str, int | None]:
        """Layers of the first and of the last pipeline stage, by the names that models and checks take them under."""
        return {"first_stage_layers": self.first_stage_layers, "last_stage_layers": self.last_stage_layers}

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def last_stage(self) -> bool:
        return self.pp_rank == self.pp - 1

    @property
    def writer(self) -> bool:
        """The one rank that writes what all ranks share."""
        return self.rank == 0

    @property
    def replica_lead(self) -> bool:
        """The one rank of a model replica that commits the replica's row groups."""
        return self.tp_rank == 0 and self.last_stage

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(group=self.whole_group)

    def alive(self) -> None:
        """Tell the ranks that wait in `meet` that work goes on; cheap enough for every finished row."""
        global _said_alive
        # Of the job, for a phase of one rank may be waited for by many.
        several = dist.is_initialized() and dist.get_world_size() > 1
        if several and time.monotonic() - _said_alive > 1:
            _said_alive = time.monotonic()
            job_store().add("nemo_sdg/alive", 1)

    def meet(self, *, may_stop: bool = True) -> None:
        """A barrier behind work of unknown length: it waits for as long as some rank says that it is alive.

        A collective would give up a replica that is only slower than the timeout.

        Args:
            may_stop: a run that is told to stop ends here too (`parallel.stopping`), where a rank has not come; false in
                the middle of a unit of work.
        Raises:
            LostPeer: for the timeout nobody has said so, and a rank has not come.
            Stopped: on all ranks.
        """
        if self.world_size == 1:
            return
        here = f"{self.first}+{self.world_size}"
        key = f"nemo_sdg/meet/{here}/{_meetings[here]}"
        _meetings[here] += 1
        reason = self.arrive(key, *([stopping.known] if may_stop else []))
        # The first word counts for all: one that sees the last rank come and one that sees a stop must do the same.
        agreed = json.loads(job_store().compare_set(f"{key}/stops", "", json.dumps(reason)))
        if agreed is not None:
            raise stopping.stopped(agreed)
        self.barrier()

    def arrive(self, key: str, leave: Callable[[], str | None] = lambda: None) -> str | None:
        """Count this rank under `key` and wait for the others; what `leave` says ends the waiting, and is returned."""
        last, since = -1, time.monotonic()
        arrived = job_store().add(key, 1)
        while arrived < self.world_size and time.monotonic() - since < self.timeout_s:
            if (reason := leave()) is not None:
                return reason
            time.sleep(0.02 if time.monotonic() - since < 1 else 0.5)
            arrived, now = job_store().add(key, 0), job_store().add("nemo_sdg/alive", 0)
            if now != last:
                last, since = now, time.monotonic()
        if arrived < self.world_size:
            raise LostPeer(f"{self.world_size - arrived} of {self.world_size} ranks did not come in {self.timeout_s} s")
        return None

    def broadcast_object(self, obj: Any, src: int = 0) -> Any:
        """The JSON value that rank `src` holds, on every rank. Ranks never unpickle what another one sends."""
        if self.world_size == 1:
            return obj
        return _broadcast_json(obj, self.first + src, self.whole_group)

    def gather_objects(self, obj: Any) -> list[Any]:
        """The JSON values of all ranks, in the order of the ranks, on every rank."""
        return [obj] if self.world_size == 1 else _gather_json(obj, self.world_size, self.whole_group)

    def gather_in_replica(self, obj: Any) -> list[Any]:
        """The same of the ranks of this replica."""
        return [obj] if self.tp * self.pp == 1 else _gather_json(obj, self.tp * self.pp, self.replica_group)

    def broadcast_in_replica(self, obj: Any) -> Any:
        """The JSON value that the lead rank of this replica holds, on every rank of the replica."""
        if self.tp * self.pp == 1:
            return obj
        lead = dist.get_global_rank(self.replica_group, self.tp * (self.pp - 1))
        return _broadcast_json(obj, lead, self.replica_group)

    def broadcast_from_first_shard(self, tensor: torch.Tensor) -> torch.Tensor:
        """Fill `tensor` on every tensor-parallel rank of this stage with the first one's content."""
        if self.tp > 1:
            dist.broadcast(tensor, dist.get_global_rank(self.tp_group, 0), group=self.tp_group)
        return tensor

    def broadcast_from_last_stage(self, tensor: torch.Tensor) -> torch.Tensor:
        """Fill `tensor` on every stage of this replica with the last stage's content."""
        if self.pp > 1:
            dist.broadcast(tensor, dist.get_global_rank(self.pp_group, self.pp - 1), group=self.pp_group)
        return tensor


_said_alive = 0.0
_meetings: Counter[str] = Counter()


def _broadcast_json(obj: Any, src: int, group: Any) -> Any:
    """What rank `src` of the job holds, on every rank of the group."""
    mine = dist.get_rank() == src
    payload = json.dumps(obj).encode() if mine else b""
    size = torch.tensor([len(payload)], device=device.device())
    dist.broadcast(size, src, group=group)
    data = torch.empty(int(size.item()), dtype=torch.uint8, device=device.device())
    if mine:
        data.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    dist.broadcast(data, src, group=group)
    return json.loads(data.cpu().numpy().tobytes())


def _gather_json(obj: Any, world: int, group: Any) -> list[Any]:
    payload = torch.frombuffer(bytearray(json.dumps(obj).encode()), dtype=torch.uint8).to(device.device())
    sizes = [torch.zeros(1, dtype=torch.int64, device=payload.device) for _ in range(world)]
    dist.all_gather(sizes, torch.tensor([len(payload)], device=payload.device), group=group)
    most = max(int(size) for size in sizes)
    padded = torch.nn.functional.pad(payload, (0, most - len(payload)))
    found = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(found, padded, group=group)
    return [json.loads(data[: int(size)].cpu().numpy().tobytes()) for data, size in zip(found, sizes)]


def world_size() -> int:
    """Ranks of this launch: torchrun's WORLD_SIZE, or 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(topology: Topology, timeout_s: float = 600) -> Mesh:
    """Start the process group if there is none, and lay the rank grid over it.

    The timeout is ours: gloo's own default of 30 minutes is how long peers of a dead rank would stay silent.
    """
    device.install()
    from megatron.core import parallel_state

    data_parallel_size(topology, dist.get_world_size() if dist.is_initialized() else world_size())
    if not dist.is_initialized():
        if device.has_cuda():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        os.environ.setdefault("RANK", "0")
        os.environ.setdefault("WORLD_SIZE", "1")
        rank, world = int(os.environ["RANK"]), world_size()
        interface.settle()
        alone = world == 1 and "MASTER_ADDR" not in os.environ  # needs no port
        dist.init_process_group(
            "nccl" if device.has_cuda() else "gloo",
            timeout=datetime.timedelta(seconds=timeout_s),
            store=dist.HashStore() if alone else fresh_store(rank, world, timeout_s),
            rank=rank,
            world_size=world,
        )
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=topology.tp,
        pipeline_model_parallel_size=topology.pp,
        distributed_timeout_minutes=timeout_s / 60,
    )
    return current(
        timeout_s, first_stage_layers=topology.first_stage_layers, last_stage_layers=topology.last_stage_layers
    )


def current(timeout_s: float = 600, **uneven_stages: int | None) -> Mesh:
    """The grid that megatron's `parallel_state` has, whoever has laid it."""
    from megatron.core import parallel_state

    return Mesh(
        tp=parallel_state.get_tensor_model_parallel_world_size(),
        pp=parallel_state.get_pipeline_model_parallel_world_size(),
        dp=parallel_state.get_data_parallel_world_size(),
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        dp_rank=parallel_state.get_data_parallel_rank(),
        rank=dist.get_rank(),
        tp_group=parallel_state.get_tensor_model_parallel_group(),
        pp_group=parallel_state.get_pipeline_model_parallel_group(),
        dp_group=parallel_state.get_data_parallel_group(),
        timeout_s=timeout_s,
        replica_group=parallel_state.get_model_parallel_group(),
        **uneven_stages,
    )


def alone(job: Mesh) -> Mesh | None:
    """The first rank by itself, for what no other rank takes a part in; None on the others."""
    if job.rank != 0:
        return None
    first = dict.fromkeys(("rank", "tp_rank", "pp_rank", "dp_rank"), 0)
    groups = dict.fromkeys(("tp_group", "pp_group", "dp_group"))
    return Mesh(tp=1, pp=1, dp=1, timeout_s=job.timeout_s, **first, **groups)


def lay(grid: Grid, job: Mesh) -> Mesh | None:
    """A grid beside the job's own, with groups of its own; None on the ranks that it does not cover.

    Every rank of the job calls it, with the same grids in the same order.
    """
    from megatron.core.hyper_comm_grid import HyperCommGrid
    from megatron.core.process_groups_config import ProcessGroupCollection

    made = HyperCommGrid([grid.tp, grid.dp, grid.pp], ["tp", "dp", "pp"], rank_offset=grid.first)
    timeout = datetime.timedelta(seconds=job.timeout_s)
    tp, dp, pp, replica, whole = (
        made.create_pg(dims, timeout=timeout) for dims in (["tp"], ["dp"], ["pp"], ["tp", "pp"], ["tp", "dp", "pp"])
    )
    if job.rank not in grid.ranks:
        return None
    rank = job.rank - grid.first
    # Of what training needs besides (context and expert parallelism, tied embeddings) these models use nothing.
    groups = ProcessGroupCollection(tp=tp, pp=pp, mp=replica, dp=dp, dp_cp=dp, cp=None, embd=None, pos_embd=None)
    return Mesh(
        tp=grid.tp, pp=grid.pp, dp=grid.dp, rank=rank, first=grid.first, timeout_s=job.timeout_s,
        tp_rank=rank % grid.tp, dp_rank=rank // grid.tp % grid.dp, pp_rank=rank // (grid.tp * grid.dp),
        tp_group=tp, dp_group=dp, pp_group=pp, replica_group=replica, whole_group=whole, groups=groups,
        **grid.uneven_stages,
    )  # fmt: skip


def leave() -> None:
    """Take the rank grid and the process group down."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
