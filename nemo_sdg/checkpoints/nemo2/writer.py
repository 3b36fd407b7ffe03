"""Writes a NeMo 2 checkpoint: `weights/` in Megatron's torch_dist format, the config, the tokenizer and `context/`.

A unit is one .distcp file: the blocks of one pipeline stage, tensor-parallel shard and run of layers, each an
archive of `torch.save` with a few million elements at most. Any grid of blocks loads at any topology: this one lets
a rank of the topology that was asked for read whole blocks. `finish` writes the index through torch's own classes.
Layout: NVIDIA/Megatron-LM core_v0.15.3 (keys, `common.pt`), pytorch/pytorch torch/distributed/checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nemo_sdg.checkpoints.description import write_description
from nemo_sdg.checkpoints.names import LAYERS, Region, TensorPlace, architecture, region
from nemo_sdg.checkpoints.nemo2.context import write_context
from nemo_sdg.checkpoints.nemo2.index import DTYPES, INDEX
from nemo_sdg.checkpoints.reading import read_array
from nemo_sdg.checkpoints.tensors import ITEM_BYTES, Contents
from nemo_sdg.checkpoints.writing import Output, Unit, create

WEIGHTS = "weights"
_PREFIX = "module."
"""NeMo saves the model as the `module` of its Lightning module."""
_BLOCK_BYTES = 64 << 20
_FILE_BYTES = 2 << 30
_TABLE = struct.Struct("<QQ")
_NO_STATE = "__0_state.distcp"
_STATES = (
    "self_attention.linear_qkv", "self_attention.core_attention", "self_attention.linear_proj",
    "mlp.linear_fc1", "mlp.linear_fc2",
)  # fmt: skip
"""Modules of a layer whose `_extra_state` TransformerEngine asks for; Megatron's own layers ask for some of them."""

Block = tuple[str, Region, int | None]
"""Released key, box in the whole tensor, layer."""


def units(contents: Contents, *, tp: int, pp: int) -> list[Unit]:
    """The weights, cut for `tp` tensor-parallel ranks and `pp` pipeline stages."""
    made = []
    for name, blocks in _files(contents, tp, pp):
        size = sum(_num_bytes(contents, block) for block in blocks)
        made.append(Unit((f"{WEIGHTS}/{name}",), size, partial(_write_file, contents, name, blocks)))
    return made


def finish(contents: Contents, making: Path, *, tokenizer: bytes, tp: int, pp: int) -> None:
    """The index, what is common to all ranks, the config, the tokenizer and `context/`."""
    import torch

    weights = making / WEIGHTS
    common = {
        "epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.4.0", "state_dict": {}, "loops": {},
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }  # fmt: skip
    torch.save(common, weights / "common.pt")
    described = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    described |= {"common_backend": "torch", "common_backend_version": 1}
    (weights / "metadata.json").write_text(json.dumps(described))
    torch.save([None], weights / _NO_STATE)
    _write_index(contents, weights, tp, pp)
    shape, dtype, reward = contents.shape, contents.dtype, contents.is_reward
    write_description(making, shape, tokenizer, reward=reward, outputs=contents.outputs, dtype=dtype, tp=tp, pp=pp)
    write_context(making, shape, dtype=dtype, reward=reward, head_bias=contents.head_bias, tokenizer=tokenizer)


def _files(contents: Contents, tp: int, pp: int) -> list[tuple[str, list[Block]]]:
    """Names of the .distcp files and the blocks that each holds, in order."""
    known = architecture(contents.shape)
    cut = partial(_blocks, contents, tp)
    places = [known[key] for key in contents.tensors]
    num_layers = contents.shape.num_layers
    found: list[tuple[str, list[Block]]] = []
    for stage in range(pp):
        layers = [layer for layer in range(num_layers) if layer * pp // num_layers == stage]
        for tp_rank in range(tp):
            blocks = [b for place in places if place.stage == "first" and stage == 0 for b in cut(place, None, tp_rank)]
            of_layers = [place for place in places if place.stage == "layers"]
            blocks += [b for layer in layers for place in of_layers for b in cut(place, layer, tp_rank)]
            blocks += [
                b for place in places if place.stage == "last" and stage == pp - 1 for b in cut(place, None, tp_rank)
            ]
            for number, packed in enumerate(_packed(contents, blocks)):
                found.append((f"__{stage * tp + tp_rank}_{number}.distcp", packed))
    return found


def _packed(contents: Contents, blocks: list[Block]) -> list[list[Block]]:
    """Neighbours put together as long as a file stays small."""
    files: list[list[Block]] = []
    filled = _FILE_BYTES
    for block in blocks:
        filled += _num_bytes(contents, block)
        if filled > _FILE_BYTES:
            files.append([])
            filled = _num_bytes(contents, block)
        files[-1].append(block)
    return files


def _blocks(contents: Contents, tp: int, place: TensorPlace, layer: int | None, tp_rank: int) -> list[Block]:
    """The shard of one rank in slabs of rows; what is not cut by TP belongs to rank 0."""
    if place.tp_axis is None and tp_rank:
        return []
    box = region(place, layer, tp, tp_rank)
    axis = int(place.stacked)
    if any(slab.start >= slab.stop for slab in box):
        return []
    # Of the first rank, which has the widest shard: the blocks of all ranks must be one grid.
    widest = region(place, layer, tp, 0)[axis + 1 :]
    row = math.prod(slab.stop - slab.start for slab in widest) * ITEM_BYTES[contents.tensors[place.key].dtype]
    step = max(1, _BLOCK_BYTES // row)
    return [
        (place.key, (*box[:axis], slice(start, min(box[axis].stop, start + step)), *box[axis + 1 :]), layer)
        for start in range(box[axis].start, box[axis].stop, step)
    ]


def _num_bytes(contents: Contents, block: Block) -> int:
    key, box, _ = block
    return math.prod(slab.stop - slab.start for slab in box) * ITEM_BYTES[contents.tensors[key].dtype]


class _Counting:
    """What torch.save writes to; counts the bytes."""

    def __init__(self, out: Output) -> None:
        self.out, self.count = out, 0

    def write(self, data: Any) -> int:
        self.out.write(data)
        length = memoryview(data).nbytes
        self.count += length
        return length

    def flush(self) -> None:
        """Nothing is held back."""


def _write_file(contents: Contents, name: str, blocks: list[Block], making: Path) -> dict[str, str]:
    """The records of a file one after the other, and at its end a table of where they lie, for `finish`."""
    import torch

    path = f"{WEIGHTS}/{name}"
    with create(making / path) as out:
        sink = _Counting(out)
        table = []
        for key, box, layer in blocks:
            tensor = contents.tensors[key]
            raw = read_array(contents.files, tensor, box, layer)
            dtype = getattr(torch, _TORCH[tensor.dtype])
            values = torch.from_numpy(raw.reshape(-1).view(np.uint8)).view(dtype)
            start = sink.count
            torch.save(values.view([slab.stop - slab.start for slab in box]), sink)
            table.append(_TABLE.pack(start, sink.count - start))
        sink.write(b"".join(table))
    return {path: out.sha256}


_TORCH = {ours: name for name, ours in DTYPES.items()}


def _read_table(path: Path, count: int) -> list[tuple[int, int]]:
    with open(path, "rb") as file:
        file.seek(-count * _TABLE.size, os.SEEK_END)
        return list(_TABLE.iter_unpack(file.read()))


def _write_index(contents: Contents, weights: Path, tp: int, pp: int) -> None:
    import torch
    from torch.distributed.checkpoint import metadata as kinds
    from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
    from torch.distributed.checkpoint.storage import WriteResult

    class Writer(FileSystemWriter):
        def storage_meta(self) -> kinds.StorageMeta:
            return kinds.StorageMeta()  # torch's own would hold the path of this folder and a random id

    chunks: dict[str, list[kinds.ChunkStorageMetadata]] = {key: [] for key in contents.tensors}
    results = []
    for name, blocks in _files(contents, tp, pp):
        for (key, box, _), (start, length) in zip(blocks, _read_table(weights / name, len(blocks)), strict=True):
            origin = torch.Size(slab.start for slab in box)
            sizes = torch.Size(slab.stop - slab.start for slab in box)
            chunks[key].append(kinds.ChunkStorageMetadata(origin, sizes))
            index = kinds.MetadataIndex(_megatron_key(key), origin)
            results.append(WriteResult(index, length, _StorageInfo(name, start, length)))
    described: dict[str, Any] = {}
    for key, tensor in contents.tensors.items():
        properties = kinds.TensorProperties(dtype=getattr(torch, _TORCH[tensor.dtype]))
        described[_megatron_key(key)] = kinds.TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks[key])
    length = (weights / _NO_STATE).stat().st_size
    for key in _state_keys(contents.shape.num_layers, reward=contents.is_reward):
        described[key] = kinds.BytesStorageMetadata()
        results.append(WriteResult(kinds.MetadataIndex(key), length, _StorageInfo(_NO_STATE, 0, length)))
    Writer(weights).finish(kinds.Metadata(described), [results])
    assert (weights / INDEX).is_file()


def _megatron_key(key: str) -> str:
    return _PREFIX + key.removeprefix("model.")


def _state_keys(num_layers: int, *, reward: bool) -> list[str]:
    """Keys of the empty `_extra_state` of each module: what a layer without fp8 has saved."""
    layers = _megatron_key(LAYERS)
    keys = [
        f"{layers}{module}._extra_state/shard_{layer}_{num_layers}" for module in _STATES for layer in range(num_layers)
    ]
    single = ["decoder.final_layernorm", *(["rm_head"] if reward else [])]
    return keys + [f"{_PREFIX}{module}._extra_state/shard_0_1" for module in single]
