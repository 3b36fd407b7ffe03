"""A live model becomes a released folder: one chunk is one tensor-parallel shard of one layer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from nemo_sdg.checkpoints.description import write_description
from nemo_sdg.checkpoints.load import parameters
from nemo_sdg.checkpoints.names import TensorPlace, region, tensor_places
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.store import commit_folder


def save(
    model: torch.nn.Module,
    path: Path,
    shape: NemotronShape,
    tokenizer: bytes,
    mesh: Mesh,
    *,
    also: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write this model as a released folder in bf16; it appears under its name when it is whole.

    One chunk is one tensor-parallel shard of one layer, as in the released folders.

    Args:
        also: whole tensors by released key that the model does not hold (the Reward folder keeps the language
            model's output layer); written by the first rank.
    """
    if path.exists():
        raise CheckpointError("the folder exists already", where=path, way_out="give a new name")
    making = path.with_name(f".{path.name}.making")
    weights = making / "model_weights"
    reward = model.is_reward
    places = tensor_places(shape, reward=reward, head_bias=model.head_bias)
    extra = {key: tensor_places(shape, reward=False)[key] for key in also or {}}
    if mesh.writer:
        shutil.rmtree(making, ignore_errors=True)  # of an attempt that was killed
        for key, place in {**places, **extra}.items():
            tp = 1 if key in extra else mesh.tp
            (weights / key).mkdir(parents=True)
            (weights / key / ".zarray").write_text(json.dumps(_header(place, tp), indent=4, sort_keys=True))
        description = {
            "sharded_backend": "zarr",
            "sharded_backend_version": 1,
            "common_backend": "torch",
            "common_backend_version": 1,
        }
        (weights / "metadata.json").write_text(json.dumps(description))
        write_description(making, shape, tokenizer, reward=reward, tp=mesh.tp, pp=mesh.pp)
        for key, values in (also or {}).items():
            _write_chunk(weights / key, extra[key], None, 0, values)
    mesh.barrier()
    if mesh.dp_rank == 0:
        for _, key, layer, parameter in parameters(model):
            box = region(places[key], layer, mesh.tp, mesh.tp_rank)
            # A shard that is all padding lies outside of the grid of chunks.
            if (places[key].tp_axis is not None or mesh.tp_rank == 0) and all(s.start < s.stop for s in box):
                _write_chunk(weights / key, places[key], layer, mesh.tp_rank, parameter.detach())
    mesh.barrier()
    if mesh.writer:
        commit_folder(making, path)
    mesh.barrier()


def _header(place: TensorPlace, tp: int) -> dict:
    sizes = list(place.shape[1:] if place.stacked else place.shape)
    if place.tp_axis is not None:
        sizes[place.tp_axis] = -(-sizes[place.tp_axis] // tp)  # a padded shard is just an edge chunk
    chunks = [1, *sizes] if place.stacked else sizes
    return {"zarr_format": 2, "shape": list(place.shape), "chunks": chunks, "dtype": "bfloat16", "compressor": None,
            "fill_value": None, "filters": None, "order": "C"}  # fmt: skip


def _write_chunk(array: Path, place: TensorPlace, layer: int | None, tp_rank: int, values: torch.Tensor) -> None:
    index = [0] * (len(place.shape) - place.stacked)
    if place.tp_axis is not None:
        index[place.tp_axis] = tp_rank
    name = ".".join(map(str, ([layer] if place.stacked else []) + index))
    raw = values.to("cpu", torch.bfloat16).contiguous().view(torch.uint16).numpy().astype("<u2")
    (array / name).write_bytes(raw.tobytes())
