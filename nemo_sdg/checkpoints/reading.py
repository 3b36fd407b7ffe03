"""Reads boxes of stored tensors from the files that hold them, and nothing besides. numpy and os alone, no torch.

Where memory has the stored dtype, the kernel writes into it directly (`preadv`). Otherwise blocks go through one
small buffer per thread. Each block is checked right after it was read, so nothing is looked at twice from memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from nemo_sdg.checkpoints.blocks import Blocks, Box, Put, Reading, unreadable
from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.names import Region
from nemo_sdg.checkpoints.runs import Run, boxes, runs
from nemo_sdg.checkpoints.tensors import ITEM_BYTES, StoredTensor
from nemo_sdg.errors import CheckpointError

__all__ = [
    "RAW",
    "Box",
    "Put",
    "Reading",
    "Run",
    "boxes",
    "default_threads",
    "read_array",
    "read_boxes",
    "require_finite",
    "runs",
]

RAW = {"bf16": np.uint16, "fp16": np.uint16, "fp32": np.uint32, "fp64": np.uint64}
"""Bits of an element as numpy carries them; nothing is ever rounded on the way."""

_INFINITY = {"bf16": 0x7F80, "fp16": 0x7C00, "fp32": 0x7F800000, "fp64": 0x7FF0000000000000}
"""Bits of +inf (IEEE 754): what is not below it, the sign apart, is not finite."""

BLOCK_BYTES = 8 << 20
"""Bytes that a thread reads and checks at a time; fewer would cost more turns of Python's lock."""
_MAX_BUFFERS = 1024
"""IOV_MAX of Linux: buffers of one `preadv`."""


def read_array(
    files: Files,
    tensor: StoredTensor,
    wanted: Region,
    layer: int | None,
    reading: Reading | None = None,
    *,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The raw bits of a box of a tensor, without the layer axis. They may be of values that are not finite.

    Args:
        wanted: the box in the tensor's own coordinates, as `names.region` gives it.
        layer: the layer that the box lies in; None for a tensor that is not stacked.
        out: C-order memory for the result, to be used again for the next box.
    Raises:
        CheckpointError: a file is missing, cut short or cannot be read.
    """
    if tensor.made is not None:
        assert out is None
        return tensor.made(wanted, layer)
    sizes = [slab.stop - slab.start for slab in (wanted if layer is None else wanted[1:])]
    if out is None:
        out = np.empty(sizes, dtype=RAW[tensor.dtype])
    assert out.shape == tuple(sizes) and out.dtype == RAW[tensor.dtype] and out.flags.c_contiguous
    memory = out.reshape(-1).view(np.uint8)
    read_boxes(files, [Box(tensor, wanted, layer, memory)], reading, threads=1, finite=False)
    return out


def read_boxes(
    files: Files,
    wanted: Iterable[Box],
    reading: Reading | None = None,
    *,
    threads: int | None = None,
    finite: bool = True,
    block_bytes: int = BLOCK_BYTES,
    give_up: Callable[[], object] = lambda: None,
) -> Reading:
    """Read boxes, file by file, with several threads.

    Args:
        threads: how many read at a time; by default this rank's share of the cores, 8 at most.
        finite: refuse values that are not finite.
        give_up: asked by the calling thread before each of its blocks; once it is true the rest is not read, and the
            caller must ask itself what it holds.
    Raises:
        CheckpointError: a file is missing, cut short or cannot be read, pieces leave a gap, a value is not finite.
    """
    blocks = Blocks(files, wanted, Reading() if reading is None else reading, block_bytes)
    others: list[threading.Thread] = []
    try:
        for _ in range((threads or default_threads()) - 1):
            thread = threading.Thread(target=_work, args=(blocks, finite))
            thread.start()
            others.append(thread)
        given_up = _work(blocks, finite, give_up)
    finally:
        blocks.stop()  # an interrupt ends the other threads too
        for thread in others:
            thread.join()
    blocks.finish(given_up=given_up)
    return blocks.reading


def require_finite(tensor: StoredTensor, raw: np.ndarray) -> None:
    """Raises CheckpointError if raw bits of a tensor hold an infinity or not-a-number."""
    # No mask and no float is made. Weights are below 2, where the highest bit of the exponent is never set: one pass
    # tells. Others take two maxima over the bits as they lie there, of positive and of negative values.
    infinity, bits = _INFINITY[tensor.dtype], 8 * raw.dtype.itemsize
    if not int(np.bitwise_or.reduce(raw, axis=None)) >> bits - 2 & 1:
        return
    if raw.view(f"i{bits // 8}").max() >= infinity or raw.max() >= infinity | 1 << bits - 1:
        raise CheckpointError(
            f"{tensor.key} holds values that are not finite", where=tensor.where,
            way_out="download the checkpoint again",
        )  # fmt: skip


def default_threads() -> int:
    """This rank's share of the cores of its machine, 8 at most."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, len(os.sched_getaffinity(0)) // ranks))


def _work(blocks: Blocks, finite: bool, give_up: Callable[[], object] = lambda: None) -> bool:
    """Read blocks until there is no more; whether it was given up."""
    scratch = np.empty(0, np.uint8)
    while not (given_up := give_up()) and (block := blocks.take()) is not None:
        error = None
        try:
            descriptor = block.source.descriptor(blocks.files)
            if not isinstance(block.box.into, np.ndarray) and scratch.nbytes < block.run.num_bytes:
                scratch = np.empty(block.run.num_bytes, np.uint8)
            _read_block(descriptor, block.run, block.box, scratch, finite)
        except BaseException as caught:
            error = caught
        blocks.done(block, error)
    return bool(given_up)


def _read_block(descriptor: int, run: Run, box: Box, scratch: np.ndarray, finite: bool) -> None:
    """Read one block into the box's memory, or through `scratch` to the one that takes it."""
    bits = RAW[box.tensor.dtype]
    item = ITEM_BYTES[box.tensor.dtype]
    straight = isinstance(box.into, np.ndarray)
    memory, first, step = (box.into, run.target, run.target_stride) if straight else (scratch, 0, run.row_bytes)
    end = first + (run.count - 1) * step + run.row_bytes
    if step == run.row_bytes:
        rows = [memory[first:end].data]  # one stretch of memory
    else:
        rows = [memory[start : start + run.row_bytes].data for start in range(first, end, step)]
    if run.stride == run.row_bytes:
        _fill(descriptor, rows, run.offset, run.file)
    else:
        if len(rows) == 1:
            rows = [rows[0][start : start + run.row_bytes] for start in range(0, run.num_bytes, run.row_bytes)]
        for number, row in enumerate(rows):
            _fill(descriptor, [row], run.offset + number * run.stride, run.file)
    raw = memory[first:end].view(bits)
    if step == run.row_bytes:
        raw = raw.reshape(run.count, -1)
    else:
        raw = np.lib.stride_tricks.as_strided(raw, (run.count, run.row_bytes // item), (step, item))
    if finite:
        require_finite(box.tensor, raw)
    if not straight:
        box.into(raw, run.target // item, run.target_stride // item)


def _fill(descriptor: int, rows: list[memoryview], offset: int, file: Path) -> None:
    """Fill buffers, one after the other, from a stretch of a file. A read may return less than was asked for."""
    at = 0
    while at < len(rows):
        try:
            count = os.preadv(descriptor, rows[at : at + _MAX_BUFFERS], offset)
        except OSError as error:
            raise unreadable(file, error) from error
        if count == 0:
            raise CheckpointError(
                "the file is cut short", where=file, found=f"{offset} bytes",
                expected=f"{sum(row.nbytes for row in rows[at:])} more", way_out="download the checkpoint again",
            )  # fmt: skip
        offset += count
        while count and count >= rows[at].nbytes:
            count -= rows[at].nbytes
            at += 1
        if count:
            rows[at] = rows[at][count:]
