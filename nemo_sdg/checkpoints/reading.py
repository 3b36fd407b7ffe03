"""Reads boxes of stored tensors from the files that hold them, and nothing besides. numpy alone, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.names import Region
from nemo_sdg.checkpoints.survey import check_size
from nemo_sdg.checkpoints.tensors import ITEM_BYTES, StoredTensor

RAW = {"bf16": np.uint16, "fp16": np.uint16, "fp32": np.uint32, "fp64": np.uint64}
"""Bits of an element as numpy carries them; nothing is ever rounded on the way."""


@dataclass
class Reading:
    """What was read."""

    num_bytes: int = 0
    files: set[Path] = field(default_factory=set)


def read_array(
    files: Files, tensor: StoredTensor, wanted: Region, layer: int | None, reading: Reading | None = None
) -> np.ndarray:
    """The raw bits of a box of a tensor, without the layer axis.

    Args:
        wanted: the box in the tensor's own coordinates, as `names.region` gives it.
        layer: the layer that the box lies in; None for a tensor that is not stacked.
    """
    item = ITEM_BYTES[tensor.dtype]
    out = np.zeros([s.stop - s.start for s in wanted], dtype=RAW[tensor.dtype])
    for piece in tensor.by_layer[layer]:
        inside, outside = [], []
        for slab, origin, length in zip(wanted, piece.origin, piece.shape):
            start, stop = max(slab.start, origin), min(slab.stop, origin + length)
            inside.append(slice(start - origin, stop - origin))
            outside.append(slice(start - slab.start, stop - slab.start))
        if any(s.start >= s.stop for s in outside):
            continue
        end = piece.offset + math.prod(piece.shape) * item
        check_size(piece.file, files.size(piece.file), piece.file_size, end)
        block = np.memmap(piece.file, dtype=out.dtype, mode="r", offset=piece.offset, shape=piece.shape)
        out[tuple(outside)] = block[tuple(inside)]
        if reading is not None:
            reading.num_bytes += math.prod(s.stop - s.start for s in outside) * item
            reading.files.add(piece.file)
    return out if layer is None else out[0]
