"""A model folder becomes this rank's model, for generation or scoring."""

from __future__ import annotations

from pathlib import Path

import torch

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import fill
from nemo_sdg.models.nemotron import DTYPES, NemotronModel, build, transformer_config
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


def load_model(
    path: Path | str, mesh: Mesh, *, dtype: str | None = None, reward: bool = False, spec: str = "auto"
) -> tuple[NemotronModel, Tokenizer]:
    """Build this rank's part of the model and fill it from the folder, released or trained, ready to run.

    Raises:
        CheckpointError: the folder is not a checkpoint, is of the other kind, or a tensor does not fit.
        TopologyError: TP or PP cannot cut the model.
    """
    folder = ModelFolder.open(path)
    folder.require(reward=reward)
    folder.shape.check_topology(mesh.tp, mesh.pp, **mesh.uneven_stages)
    config = transformer_config(
        folder.shape, dtype=resolve_dtype(dtype, folder), tp=mesh.tp, pp=mesh.pp, **mesh.uneven_stages
    )
    model = build(
        config, folder.shape, pre_process=mesh.first_stage, post_process=mesh.last_stage, reward=reward,
        head_bias=folder.contents.head_bias, spec=spec, groups=mesh.groups,
    )  # fmt: skip
    model.to(device.device())
    if reward:
        model.outputs = folder.contents.outputs
    with doing(f"loading {folder.path}"):
        fill(model, folder, mesh)
    return model.eval(), Tokenizer(folder.tokenizer, folder.path)
