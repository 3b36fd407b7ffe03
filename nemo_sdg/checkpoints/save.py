"""A live model becomes a released folder: one chunk is one tensor-parallel shard of one layer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from nemo_sdg.checkpoints.description import write_description
from nemo_sdg.checkpoints.load import TORCH, parameters
from nemo_sdg.checkpoints.names import OUTPUT_LAYER, TensorPlace, architecture, region, tensor_places
from nemo_sdg.checkpoints.release import WEIGHTS
from nemo_sdg.checkpoints.release_writer import array_header, write_metadata
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.store import commit_folder


def save(
    model: torch.nn.Module | Sequence[torch.nn.Module],
    path: Path,
    shape: NemotronShape,
    tokenizer: bytes,
    mesh: Mesh,
    *,
    dtype: str = "bf16",
    also: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write this model, or its virtual stages, as a released folder; it appears under its name when it is whole.

    One chunk is one tensor-parallel shard of one layer, as in the released folders.

    Args:
        dtype: what the weights are stored in: bf16, fp16, fp32 or fp64.
        also: whole tensors by released key that the model does not hold (the Reward folder keeps the language
            model's output layer); written by the first rank.
    Raises:
        CheckpointError: the folder exists already, or a weight is not finite in this dtype.
    """
    if path.exists():
        raise CheckpointError("the folder exists already", where=path, way_out="give a new name")
    chunks = [model] if isinstance(model, torch.nn.Module) else model
    reward = chunks[0].is_reward
    making = path.with_name(f".{path.name}.making")
    weights = making / WEIGHTS
    places = tensor_places(shape, reward=reward, head_bias=chunks[0].head_bias)
    extra = {key: architecture(shape)[key] for key in also or {}}
    assert set(extra) <= {OUTPUT_LAYER}, "nothing else stands beside a model in a released folder"
    if mesh.writer:
        shutil.rmtree(making, ignore_errors=True)  # of an attempt that was killed
        for key, place in {**places, **extra}.items():
            (weights / key).mkdir(parents=True)
            header = array_header(place, 1 if key in extra else mesh.tp, dtype)
            (weights / key / ".zarray").write_text(json.dumps(header, indent=4, sort_keys=True))
        write_metadata(making)
        write_description(making, shape, tokenizer, reward=reward, dtype=dtype, tp=mesh.tp, pp=mesh.pp)
        for key, values in (also or {}).items():
            _write_chunk(weights / key, extra[key], None, 0, values, dtype)
    mesh.barrier()
    if mesh.dp_rank == 0:
        for _, key, layer, parameter in (row for chunk in chunks for row in parameters(chunk)):
            box = region(places[key], layer, mesh.tp, mesh.tp_rank)
            # A shard that is all padding lies outside of the grid of chunks.
            if (places[key].tp_axis is not None or mesh.tp_rank == 0) and all(s.start < s.stop for s in box):
                _write_chunk(weights / key, places[key], layer, mesh.tp_rank, parameter.detach(), dtype)
    mesh.barrier()
    if mesh.writer:
        commit_folder(making, path)
    mesh.barrier()


def _write_chunk(
    array: Path, place: TensorPlace, layer: int | None, tp_rank: int, values: torch.Tensor, dtype: str
) -> None:
    index = [0] * (len(place.shape) - place.stacked)
    if place.tp_axis is not None:
        index[place.tp_axis] = tp_rank
    name = ".".join(map(str, ([layer] if place.stacked else []) + index))
    stored = values.to("cpu", TORCH[dtype]).contiguous()
    if not torch.isfinite(stored).all():
        raise CheckpointError(
            f"{place.key} holds values that are not finite in {dtype}", where=array / name,
            way_out="save it in a wider dtype, or look for where the training went wrong",
        )  # fmt: skip
    (array / name).write_bytes(stored.view(torch.uint8).numpy().data)
