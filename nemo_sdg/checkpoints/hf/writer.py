"""Writes a Hugging Face folder from any checkpoint: safetensors as a stream, then everything small. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nemo_sdg.checkpoints.hf.config import make_config, make_generation_config
from nemo_sdg.checkpoints.hf.contents import INDEX, SINGLE
from nemo_sdg.checkpoints.hf.header import make_header
from nemo_sdg.checkpoints.hf.names import HFTensor, hf_tensors
from nemo_sdg.checkpoints.hf.pieces import CONTROL, read_pieces
from nemo_sdg.checkpoints.hf.tokenizer import write_tokenizer
from nemo_sdg.checkpoints.reading import read_array
from nemo_sdg.checkpoints.tensors import ITEM_BYTES, Contents
from nemo_sdg.checkpoints.writing import Unit, create
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.tokenizer import Tokenizer

SHARD_BYTES = 5_000_000_000
"""As transformers' save_pretrained."""
_BLOCK_BYTES = 64 << 20


def units(contents: Contents, *, tp: int = 1, pp: int = 1, shard_bytes: int = SHARD_BYTES) -> list[Unit]:
    """One unit per safetensors file, each of at most `shard_bytes` bytes or of one tensor that is larger.

    tp and pp say nothing here: a Hugging Face folder holds whole tensors.
    """
    return [
        Unit((name,), sum(_num_bytes(contents, tensor) for tensor in tensors), partial(_write, contents, name, tensors))
        for name, tensors in _shards(contents, shard_bytes)
    ]


def finish(
    contents: Contents, making: Path, *, tokenizer: bytes, tp: int = 1, pp: int = 1, shard_bytes: int = SHARD_BYTES
) -> None:
    """The index, config.json, generation_config.json, the tokenizer in all its forms and the chat template.

    Raises:
        CheckpointError: the tokenizer does not belong to the weights, or Hugging Face's cannot do what it does.
    """
    ours = Tokenizer(tokenizer)
    shape = contents.shape
    if ours.vocab_size > shape.vocab_size:
        raise CheckpointError(
            "the tokenizer does not belong to the weights", where=contents.files.where,
            found=f"{ours.vocab_size} pieces", expected=f"at most {shape.vocab_size}, the rows of the embedding",
            way_out="name the tokenizer of this model with --tokenizer",
        )  # fmt: skip
    shards = _shards(contents, shard_bytes)
    if len(shards) > 1:
        total = sum(_num_bytes(contents, tensor) for _, tensors in shards for tensor in tensors)
        weight_map = {tensor.name: name for name, tensors in shards for tensor in tensors}
        _write_json(making / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    bos_id = _bos_id(tokenizer)
    config = make_config(
        shape, reward=contents.is_reward, outputs=contents.outputs, dtype=contents.dtype, bos_id=bos_id,
        stop_ids=ours.stop_ids,
    )
    _write_json(making / "config.json", config)
    if not contents.is_reward:
        _write_json(making / "generation_config.json", make_generation_config(bos_id=bos_id, stop_ids=ours.stop_ids))
    write_tokenizer(making, tokenizer, reward=contents.is_reward, seq_length=shape.seq_length)


def _bos_id(tokenizer: bytes) -> int | None:
    """The id of `<s>`; nothing ever puts it before a prompt, but configs name it."""
    return next((index for index, text in read_pieces(tokenizer).of_type(CONTROL) if text == "<s>"), None)


def _shards(contents: Contents, shard_bytes: int) -> list[tuple[str, list[HFTensor]]]:
    """Files by name and what they hold; a file is full when the next tensor would not fit."""
    shards: list[list[HFTensor]] = []
    room = 0
    for tensor in hf_tensors(contents.shape, contents.tensors):
        size = _num_bytes(contents, tensor)
        if not shards or size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= size
    if len(shards) == 1:
        return [(SINGLE, shards[0])]
    return [(f"model-{i:05d}-of-{len(shards):05d}.safetensors", tensors) for i, tensors in enumerate(shards, start=1)]


def _num_bytes(contents: Contents, tensor: HFTensor) -> int:
    return math.prod(tensor.shape) * ITEM_BYTES[contents.tensors[tensor.key].dtype]


def _write(contents: Contents, name: str, tensors: Sequence[HFTensor], making: Path) -> dict[str, str]:
    header = make_header([(tensor.name, contents.tensors[tensor.key].dtype, tensor.shape) for tensor in tensors])
    with create(making / name) as file:
        file.write(header)
        for tensor in tensors:
            for block in _blocks(contents, tensor):
                file.write(memoryview(np.ascontiguousarray(block)).cast("B"))
    return {name: file.sha256}


def _blocks(contents: Contents, tensor: HFTensor) -> Iterator[np.ndarray]:
    """The rows of a tensor in order, as little-endian bits, in blocks of bounded size."""
    stored = contents.tensors[tensor.key]
    row_bytes = math.prod(tensor.shape[1:]) * ITEM_BYTES[stored.dtype]
    step = max(1, _BLOCK_BYTES // row_bytes)
    others = tuple(slice(0, size) for size in tensor.shape[1:])
    for start, stop in tensor.rows(contents.shape):
        for first in range(start, stop, step):
            box: tuple[slice, ...] = (slice(first, min(first + step, stop)), *others)
            if tensor.layer is not None:
                box = (slice(tensor.layer, tensor.layer + 1), *box)
            block = read_array(contents.files, stored, box, tensor.layer)
            yield block.astype(block.dtype.newbyteorder("<"), copy=False)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
