"""A model folder becomes this rank's model, for generation or scoring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import fill
from nemo_sdg.models.nemotron import DTYPES, NemotronModel, build, transformer_config
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel import device
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.parallel.watch import doing


def resolve_dtype(name: str | None, folder: ModelFolder) -> torch.dtype:
    """The dtype that a model runs in: as asked; else the checkpoint's own on a GPU (fp16 runs in fp32), fp32 on a CPU."""
    if name is not None:
        return DTYPES[name]
    if not device.has_cuda():
        return torch.float32
    return DTYPES.get(folder.dtype, torch.float32)


def build_chunks(
    shape: NemotronShape,
    mesh: Mesh,
    *,
    dtype: torch.dtype,
    reward: bool = False,
    head_bias: bool = False,
    spec: str = "auto",
    virtual_stages: int = 1,
    **more: Any,
) -> list[NemotronModel]:
    """This rank's model, not yet filled: one part for each of its virtual stages.

    Args:
        more: further fields of Megatron's config.
    """
    config = transformer_config(
        shape, dtype=dtype, tp=mesh.tp, pp=mesh.pp, virtual_stages=virtual_stages, **mesh.uneven_stages
    )
    for name, value in more.items():
        setattr(config, name, value)
    return [
        build(
            config, shape, reward=reward, head_bias=head_bias, spec=spec, groups=mesh.groups,
            vp_stage=chunk if virtual_stages > 1 else None,
            pre_process=mesh.first_stage and chunk == 0,
            post_process=mesh.last_stage and chunk == virtual_stages - 1,
        )
        for chunk in range(virtual_stages)
    ]  # fmt: skip


def load_model(
    path: Path | str,
    mesh: Mesh,
    *,
    dtype: str | None = None,
    reward: bool = False,
    spec: str = "auto",
    give_up: Callable[[], object] = lambda: None,
) -> tuple[NemotronModel, Tokenizer]:
    """Build this rank's part of the model and fill it from the folder, released or trained, ready to run.

    Args:
        give_up: as `fill` wants it.
    Raises:
        CheckpointError: the folder is not a checkpoint, is of the other kind, or a tensor does not fit.
        TopologyError: TP or PP cannot cut the model.
    """
    folder = ModelFolder.open(path)
    folder.require(reward=reward)
    folder.shape.check_topology(mesh.tp, mesh.pp, **mesh.uneven_stages)
    (model,) = build_chunks(
        folder.shape, mesh, dtype=resolve_dtype(dtype, folder), reward=reward, head_bias=folder.contents.head_bias, spec=spec
    )
    model.to(device.device())
    if reward:
        model.outputs = folder.contents.outputs
    with doing(f"loading {folder.path}"):
        fill(model, folder, mesh, give_up=give_up)
    return model.eval(), Tokenizer(folder.tokenizer, folder.path)
