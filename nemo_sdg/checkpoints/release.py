"""The released Nemotron-4 folders: raw zarr chunks of tensors stacked over the layers.

Reading is JSON, YAML and raw bytes; `common.pt` and `_extra_state` are never opened. Each rank maps only the
chunks that overlap its own shard. Layout: the file trees of nvidia/Nemotron-4-340B-{Base,Instruct,Reward}.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from nemo_sdg.checkpoints.folder import ModelFolder, item_size, write_description
from nemo_sdg.checkpoints.names import TensorPlace, released_key, tensor_places
from nemo_sdg.checkpoints.survey import checked_header
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.store import commit_folder

# Raw little-endian bytes are read as integers or floats that numpy knows, then seen as torch types.
_NUMPY = {"bfloat16": np.uint16, "<f2": np.float16, "float16": np.float16, "<f4": np.float32, "float32": np.float32}
_UNREAD = ("model.output_layer.weight", "model.rm_head.weight")

Region = tuple[slice, ...]


@dataclass
class Reading:
    """What one rank has read."""

    num_bytes: int = 0
    files: set[str] = field(default_factory=set)


def load(model: torch.nn.Module, path: Path, mesh: Mesh, *, fresh_head_seed: int | None = None) -> Reading:
    """Fill every parameter of this rank's model from a released folder.

    Args:
        fresh_head_seed: seed for a reward head that the folder does not have (Base, Instruct).
    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape, cut short, or not finite.
    """
    folder = ModelFolder.open(path)
    weights = folder.path / "model_weights"
    reward = model.is_reward
    places = tensor_places(folder.shape, reward=reward)
    if reward and not folder.is_reward and fresh_head_seed is not None:
        places.pop("model.rm_head.weight")
    headers = {key: checked_header(weights / key, place) for key, place in places.items()}
    _refuse_unknown(weights, set(places))
    reading = Reading()
    layers = getattr(model.decoder, "layers", [])
    first_layer = layers[0].layer_number - 1 if len(layers) else 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            key, layer = released_key(name, first_layer)
            if key not in places:
                if key == "model.rm_head.weight":
                    parameter.copy_(
                        fresh_tensor(
                            name, places_of_head(folder.shape), model.config.init_method_std, fresh_head_seed, mesh
                        )
                    )
                    continue
                raise CheckpointError("the model has a tensor that the layout does not know", where=weights, found=name)
            wanted = region(places[key], layer, mesh.tp, mesh.tp_rank)
            values = _read(weights / key, headers[key], wanted, reading)
            if places[key].stacked:
                values = values[0]
            if tuple(values.shape) != tuple(parameter.shape):
                raise CheckpointError(
                    f"the shape of {name} does not fit",
                    where=weights / key,
                    found=tuple(values.shape),
                    expected=tuple(parameter.shape),
                )
            if not torch.isfinite(values).all():
                raise CheckpointError(
                    f"{name} holds values that are not finite", where=weights / key, way_out="download it again"
                )
            parameter.copy_(values)
    return reading


def places_of_head(shape: NemotronShape) -> TensorPlace:
    return tensor_places(shape, reward=True)["model.rm_head.weight"]


def fresh_tensor(name: str, place: TensorPlace, std: float, seed: int, mesh: Mesh) -> torch.Tensor:
    """This rank's shard of a new tensor drawn from N(0, std^2): it depends on the seed and the name alone.

    NeMo seeds each pipeline stage differently, so a fresh head would depend on the topology.
    """
    key = int.from_bytes(hashlib.blake2b(f"{seed}\x00{name}".encode(), digest_size=7).digest(), "little")
    whole = torch.empty(place.shape, dtype=torch.float64, device="cpu")
    whole.normal_(0.0, std, generator=torch.Generator("cpu").manual_seed(key))
    return whole[region(place, None, mesh.tp, mesh.tp_rank)]


def region(place: TensorPlace, layer: int | None, tp: int, tp_rank: int) -> Region:
    """The slices of the global tensor that a rank holds; a layer of a stacked tensor is one index of axis 0."""
    sizes = place.shape[1:] if place.stacked else place.shape
    slices = [slice(0, size) for size in sizes]
    if place.tp_axis is not None:
        shard = sizes[place.tp_axis] // tp
        slices[place.tp_axis] = slice(tp_rank * shard, (tp_rank + 1) * shard)
    return (slice(layer, layer + 1), *slices) if place.stacked else tuple(slices)


def _refuse_unknown(weights: Path, expected: set[str]) -> None:
    """A tensor that nobody reads would mean that the model is not the one that the folder holds."""
    for entry in sorted(weights.iterdir()):
        if (
            entry.is_dir()
            and entry.name not in expected
            and entry.name not in _UNREAD
            and not entry.name.endswith("_extra_state")
        ):
            raise CheckpointError(
                "the folder holds a tensor that this architecture does not have", where=weights, found=entry.name,
                way_out="check that the folder is of the Nemotron architecture",
            )  # fmt: skip


def _read(array: Path, header: dict, wanted: Region, reading: Reading) -> torch.Tensor:
    """The wanted region of an array, in its stored dtype."""
    chunks, dtype = header["chunks"], np.dtype(_NUMPY[header["dtype"]])
    out = np.empty([s.stop - s.start for s in wanted], dtype=dtype)
    ranges = [range(s.start // size, (s.stop - 1) // size + 1) for s, size in zip(wanted, chunks)]
    for index in itertools.product(*ranges):
        file = array / ".".join(map(str, index))
        expected = math.prod(chunks) * item_size(header)
        size = file.stat().st_size if file.is_file() else None
        if size != expected:
            raise CheckpointError(
                "a chunk is missing" if size is None else "a chunk has the wrong size", where=file,
                found="no file" if size is None else f"{size} bytes", expected=f"{expected} bytes",
                way_out="download the folder again",
            )  # fmt: skip
        chunk = np.memmap(file, dtype=dtype.newbyteorder("<"), mode="r", shape=tuple(chunks))
        inside, outside = [], []
        for axis, slab in enumerate(wanted):
            origin = index[axis] * chunks[axis]
            start, stop = max(slab.start, origin), min(slab.stop, origin + chunks[axis])
            inside.append(slice(start - origin, stop - origin))
            outside.append(slice(start - slab.start, stop - slab.start))
        part = chunk[tuple(inside)]
        out[tuple(outside)] = part
        reading.num_bytes += part.nbytes
        reading.files.add(f"{array.name}/{file.name}")
    values = torch.from_numpy(out)
    if header["dtype"] == "bfloat16":
        values = values.view(torch.bfloat16)
    return values


def save(
    model: torch.nn.Module,
    path: Path,
    shape: NemotronShape,
    tokenizer: Path,
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
    places = tensor_places(shape, reward=reward)
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
        write_description(making, shape, tokenizer, reward=reward)
        for key, values in (also or {}).items():
            _write_chunk(weights / key, extra[key], None, 0, values)
    mesh.barrier()
    layers = getattr(model.decoder, "layers", [])
    first_layer = layers[0].layer_number - 1 if len(layers) else 0
    if mesh.dp_rank == 0:
        for name, parameter in model.named_parameters():
            key, layer = released_key(name, first_layer)
            if places[key].tp_axis is not None or mesh.tp_rank == 0:
                _write_chunk(weights / key, places[key], layer, mesh.tp_rank, parameter.detach())
    mesh.barrier()
    if mesh.writer:
        commit_folder(making, path)
    mesh.barrier()


def _header(place: TensorPlace, tp: int) -> dict:
    sizes = list(place.shape[1:] if place.stacked else place.shape)
    if place.tp_axis is not None:
        sizes[place.tp_axis] //= tp
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
