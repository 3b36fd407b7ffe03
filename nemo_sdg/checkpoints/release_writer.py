"""Writes the released layout: raw zarr chunks, each one a tensor-parallel shard of one layer. No torch.

Layout: the file trees of nvidia/Nemotron-4-340B-{Base,Instruct,Reward}, and the zarr v2 specification.
"""

from __future__ import annotations

import itertools
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nemo_sdg.checkpoints.description import write_description
from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.names import TensorPlace, architecture, tensor_places
from nemo_sdg.checkpoints.reading import read_array
from nemo_sdg.checkpoints.release import WEIGHTS, stored_tensor
from nemo_sdg.checkpoints.tensors import ITEM_BYTES, Contents, StoredTensor
from nemo_sdg.checkpoints.writing import Unit, create
from nemo_sdg.models.shapes import NemotronShape

ZARR_DTYPE = {"bf16": "bfloat16", "fp16": "<f2", "fp32": "<f4", "fp64": "<f8"}
_BOX_BYTES = 32 << 20
"""Bytes that are held in memory at a time; a chunk of the 340B embedding has 1.18 GB at TP8."""


def units(contents: Contents, *, tp: int, pp: int) -> list[Unit]:
    """The chunks of every tensor that the checkpoint holds, cut for `tp` ranks; `pp` is only recorded.

    Where `tp` does not divide an axis, the last chunk sticks out of the tensor and ends in zeros.
    """
    made = []
    places = architecture(contents.shape)
    for key, tensor in contents.tensors.items():
        chunks = array_header(places[key], tp, tensor.dtype)["chunks"]
        grid = [range(-(-length // step)) for length, step in zip(tensor.shape, chunks)]
        for index in itertools.product(*grid):
            name = f"{WEIGHTS}/{key}/{'.'.join(map(str, index))}"
            write = partial(_write_chunk, contents, tensor, places[key], chunks, index, name)
            made.append(Unit((name,), math.prod(chunks) * ITEM_BYTES[tensor.dtype], write))
    return made


def finish(contents: Contents, making: Path, *, tokenizer: bytes, tp: int, pp: int) -> None:
    """The headers of the arrays, the config and the tokenizer."""
    places = architecture(contents.shape)
    for key, tensor in contents.tensors.items():
        header = array_header(places[key], tp, tensor.dtype)
        (making / WEIGHTS / key / ".zarray").write_text(json.dumps(header, indent=4, sort_keys=True))
    write_metadata(making)
    write_description(
        making, contents.shape, tokenizer, reward=contents.is_reward, outputs=contents.outputs, dtype=contents.dtype,
        tp=tp, pp=pp,
    )  # fmt: skip


def array_header(place: TensorPlace, tp: int, dtype: str = "bf16") -> dict[str, Any]:
    """The `.zarray` of a tensor: one chunk is one tensor-parallel shard of one layer."""
    sizes = list(place.shape[1:] if place.stacked else place.shape)
    if place.tp_axis is not None:
        sizes[place.tp_axis] = -(-sizes[place.tp_axis] // tp)
    chunks = [1, *sizes] if place.stacked else sizes
    return {"zarr_format": 2, "shape": list(place.shape), "chunks": chunks, "dtype": ZARR_DTYPE[dtype],
            "compressor": None, "fill_value": None, "filters": None, "order": "C"}  # fmt: skip


def planned(shape: NemotronShape, where: Path, *, reward: bool, tp: int = 8) -> Contents:
    """What a released folder of this model would hold, cut for `tp` ranks (the 340B ones are for 8), in bf16.

    For plans of models that are not here yet.
    """
    files = Files(where)
    places = tensor_places(shape, reward=reward)
    tensors = {key: stored_tensor(files, key, array_header(place, tp)) for key, place in places.items()}
    return Contents("release", files, shape, tensors, None)


def write_metadata(making: Path) -> None:
    """`model_weights/metadata.json`, by which Megatron knows the format of the weights."""
    description = {
        "sharded_backend": "zarr",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    (making / WEIGHTS / "metadata.json").write_text(json.dumps(description))


def _write_chunk(
    contents: Contents,
    tensor: StoredTensor,
    place: TensorPlace,
    chunks: list[int],
    index: tuple[int, ...],
    name: str,
    making: Path,
) -> dict[str, str]:
    layer = index[0] if place.stacked else None
    skip = int(place.stacked)
    lengths = chunks[skip:]
    starts = [i * step for i, step in zip(index[skip:], lengths)]
    sizes = tensor.shape[skip:]
    across = tuple(slice(a, min(size, a + n)) for a, n, size in zip(starts[1:], lengths[1:], sizes[1:]))
    rows = max(1, _BOX_BYTES // (math.prod(lengths[1:]) * ITEM_BYTES[tensor.dtype]))
    with create(making / name) as out:
        for first in range(0, lengths[0], rows):
            count = min(rows, lengths[0] - first)
            begin = starts[0] + first
            box = (slice(min(sizes[0], begin), min(sizes[0], begin + count)), *across)
            wanted = (slice(layer, layer + 1), *box) if place.stacked else box
            values = read_array(contents.files, tensor, wanted, layer)
            missing = [(0, n - have) for n, have in zip((count, *lengths[1:]), values.shape)]
            if any(after for _, after in missing):
                values = np.pad(values, missing)
            out.write(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).data.cast("B"))
    return {name: out.sha256}
