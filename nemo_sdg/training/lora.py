"""Low-rank adapters in a fit: what of the model is saved, and what becomes of the adapters at its end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Iterator

import lightning.pytorch as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch import distributed as dist

from nemo_sdg.checkpoints.names import TensorPlace
from nemo_sdg.checkpoints.peft import CONFIG, WEIGHTS, adapter_config, adapter_names, head_name, modules
from nemo_sdg.config import Lora
from nemo_sdg.models.lora import Adapter, merge
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.parallel.agree import on_all, on_writer
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.training import room

FOLDER = "adapter"
"""Where the adapters lie in the folder of a model whose weights have them, too."""
_PARTS = "adapter-parts"


class MergeAtTheEnd(pl.Callback):
    """Adds the adapters to the weights after the last step, before the checkpoint callback saves them."""

    def __init__(self, shape: NemotronShape, mesh: Mesh, work: Path | None) -> None:
        """
        Args:
            work: the folder of the fit, where each pipeline stage leaves its adapters, too; None keeps none apart.
        """
        self.shape, self.mesh, self.work = shape, mesh, work

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            chunks = [plain(chunk) for chunk in trainer.strategy.megatron_parallel]
            if self.work is not None:
                save_part(chunks, self.shape, self.mesh, self.work)
            for chunk in chunks:
                merge(chunk)


def plain(model: torch.nn.Module) -> torch.nn.Module:
    """The megatron model inside NeMo's and Megatron's wrappers."""
    while hasattr(model, "module"):
        model = model.module
    return model


def to_save(model: torch.nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint of this model holds: all of it, or, while adapters are trained, only what is trained.

    Args:
        state: Megatron's sharded state of the model, keyed by parameter names behind prefixes of wrappers.
    """
    adapters = getattr(model, "adapters", None)
    if adapters is None:
        return state
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}

    def kept(key: str) -> bool:
        name = key.rpartition("module.")[2]
        return not name.startswith("adapters.") if adapters.merged else name not in frozen

    return {key: value for key, value in state.items() if kept(key)}


def save_part(chunks: list[torch.nn.Module], shape: NemotronShape, mesh: Mesh, work: Path) -> None:
    """The adapters of this pipeline stage as whole tensors by PEFT's names, in a file of their own.

    All ranks call it; the first tensor-parallel rank of the first replica writes.
    """
    tensors = {name: tensor for chunk in chunks for name, tensor in _whole(chunk, shape, mesh)}
    parts, needed = work / _PARTS, sum(tensor.nbytes for tensor in tensors.values())

    def fresh() -> None:
        shutil.rmtree(parts, ignore_errors=True)  # of a fit that was killed, perhaps with more stages
        parts.mkdir()

    def write() -> None:
        if mesh.tp_rank == 0 and mesh.dp_rank == 0:
            with room.explained(work, needed, "a stage's adapters", "make room; the same command goes on"):
                save_file(tensors, parts / f"{mesh.pp_rank:05d}.safetensors")

    on_writer(mesh, fresh)
    on_all(mesh, write)


def write_adapter(work: Path, folder: Path, base: str, settings: Lora, reward: bool) -> None:
    """Puts the stages' adapters together as a folder that PEFT opens; on one rank."""
    parts = [load_file(file) for file in sorted((work / _PARTS).iterdir())]
    shutil.rmtree(folder, ignore_errors=True)  # of a commit that was killed
    folder.mkdir()
    save_file({name: tensor for part in parts for name, tensor in part.items()}, folder / WEIGHTS, {"format": "pt"})
    config = adapter_config(base, rank=settings.rank, alpha=settings.alpha, targets=settings.targets, reward=reward)
    (folder / CONFIG).write_text(config, encoding="utf-8")


def _whole(model: torch.nn.Module, shape: NemotronShape, mesh: Mesh) -> Iterator[tuple[str, Tensor]]:
    for layer, of_layer in model.adapters.layers.items():
        for target, adapter in of_layer.items():
            a_RI, b_OR = _gathered(adapter)
            for tensor in modules(shape, target, int(layer)):
                names = adapter_names(tensor)
                yield names[0], a_RI.clone()  # safetensors refuses tensors that share memory
                yield names[1], torch.cat([b_OR[start:stop] for start, stop in tensor.rows(shape)])
    if model.is_reward and model.post_process:
        yield head_name(), _join(model.rm_head.weight.detach(), 1, model.rm_head.tp_group)


def _gathered(adapter: Adapter) -> list[Tensor]:
    places: tuple[TensorPlace, TensorPlace] = adapter.places
    shards = (adapter.a_RI.detach(), adapter.b_OR.detach())
    return [shard if place.tp_axis is None else _join(shard, place.tp_axis, adapter.group)
            for place, shard in zip(places, shards)]  # fmt: skip


def _join(shard: Tensor, axis: int, group: dist.ProcessGroup) -> Tensor:
    shards = [torch.empty_like(shard) for _ in range(group.size())]
    dist.all_gather(shards, shard.contiguous(), group=group)
    return torch.cat(shards, dim=axis)
