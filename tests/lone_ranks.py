"""Any rank of any grid, alone in this process: its groups know their sizes and ranks, and send nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from nemo_sdg.models.nemotron import NemotronModel, build, transformer_config
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.parallel import mesh as meshes
from nemo_sdg.parallel.mesh import Mesh


@contextlib.contextmanager
def lone_rank(
    tp: int, tp_rank: int, pp: int, pp_rank: int, *, vp: int = 1, first: int | None = None, last: int | None = None
) -> Iterator[Mesh]:
    """The mesh of one rank of tp x pp, for building and filling its model; call it in a forked process."""
    meshes.leave()
    rank = pp_rank * tp + tp_rank
    dist.init_process_group("fake", rank=rank, world_size=tp * pp, store=FakeStore())
    parallel_state.initialize_model_parallel(
        tp, pp, virtual_pipeline_model_parallel_size=vp if vp > 1 else None, create_gloo_process_groups=False
    )
    try:
        yield Mesh(
            tp=tp, pp=pp, dp=1, tp_rank=tp_rank, pp_rank=pp_rank, dp_rank=0, rank=rank,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            pp_group=parallel_state.get_pipeline_model_parallel_group(),
            dp_group=parallel_state.get_data_parallel_group(),
            timeout_s=1, first_stage_layers=first, last_stage_layers=last,
        )  # fmt: skip
    finally:
        meshes.leave()


def chunks(
    mesh: Mesh, shape: NemotronShape, *, vp: int = 1, reward: bool = False, dtype: torch.dtype = torch.float32
) -> list[NemotronModel]:
    """This rank's model, not yet filled, one part per virtual stage."""
    config = transformer_config(shape, dtype=dtype, tp=mesh.tp, pp=mesh.pp, virtual_stages=vp, **mesh.uneven_stages)
    return [
        build(
            config, shape, reward=reward, vp_stage=stage if vp > 1 else None,
            pre_process=mesh.first_stage and stage == 0, post_process=mesh.last_stage and stage == vp - 1,
        )
        for stage in range(vp)
    ]  # fmt: skip
