"""Any rank of any grid, alone in this process: its groups know their sizes and their ranks, and send nothing.

For building what a rank of a large job would hold, without the job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from nemo_sdg.parallel import device
from nemo_sdg.parallel import mesh as meshes
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.parallel.topology import Grid


@contextlib.contextmanager
def lone_rank(grid: Grid, rank: int, virtual_stages: int = 1) -> Iterator[Mesh]:
    """The mesh of one rank of a job; takes down whatever process group this process has."""
    device.install()
    meshes.leave()
    dist.init_process_group("fake", rank=rank, world_size=grid.size, store=FakeStore())
    try:
        parallel_state.initialize_model_parallel(
            grid.tp, grid.pp, virtual_stages if virtual_stages > 1 else None, create_gloo_process_groups=False
        )
        yield meshes.current(1, **grid.uneven_stages)
    finally:
        meshes.leave()
