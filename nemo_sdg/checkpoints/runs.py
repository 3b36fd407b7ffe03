"""Which bytes of which files make up a box of a stored tensor. Pure arithmetic: nothing is opened, no torch.

The loader executes these runs and `plan` adds them up, so the two cannot disagree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Optional

from nemo_sdg.checkpoints.names import Region
from nemo_sdg.checkpoints.tensors import ITEM_BYTES, Piece, StoredTensor

_MOST_ROWS = 4096
"""Rows of one block: tiny ones cost more memory than the bytes that they hold."""


class Run(NamedTuple):
    """`count` rows of bytes at equal distances in one file, and where they go in a dense C-order box.

    All numbers but `count` are bytes. Rows that lie one after the other in the file and in the box are one row.
    """

    piece: Piece
    offset: int
    """Where the first row begins in the file."""
    row_bytes: int
    stride: int
    """From one row to the next in the file; equal to `row_bytes` where the file has no gap."""
    count: int
    target: int
    """Where the first row goes in the box."""
    target_stride: int

    @property
    def file(self) -> Path:
        return self.piece.file

    @property
    def num_bytes(self) -> int:
        return self.row_bytes * self.count

    def ranges(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of each contiguous range of the file."""
        if self.stride == self.row_bytes:
            yield self.offset, self.num_bytes
        else:
            for row in range(self.count):
                yield self.offset + row * self.stride, self.row_bytes

    def cut(self, at_most: int, item: int) -> Iterator["Run"]:
        """The same bytes in runs of at most `at_most` bytes, on the borders of elements of `item` bytes."""
        if self.row_bytes > at_most:
            step = max(item, at_most // item * item)
            for row in range(self.count):
                for start in range(0, self.row_bytes, step):
                    length = min(step, self.row_bytes - start)
                    offset, target = row * self.stride + start, row * self.target_stride + start
                    yield Run(self.piece, self.offset + offset, length, length, 1, self.target + target, length)
            return
        rows = min(_MOST_ROWS, at_most // self.row_bytes)
        for first in range(0, self.count, rows):
            yield self._replace(
                offset=self.offset + first * self.stride,
                count=min(rows, self.count - first),
                target=self.target + first * self.target_stride,
            )


def runs(tensor: StoredTensor, wanted: Region, layer: Optional[int]) -> Iterator[Run]:
    """The bytes of a box of a tensor, piece by piece.

    Args:
        wanted: the box in the tensor's own coordinates, as `names.region` gives it.
        layer: the layer that the box lies in; None for a tensor that is not stacked.
    """
    item = ITEM_BYTES[tensor.dtype]
    for piece in tensor.by_layer[layer]:
        if all(
            slab.start < origin + length and origin < slab.stop and slab.start < slab.stop
            for slab, origin, length in zip(wanted, piece.origin, piece.shape)
        ):
            yield from _overlap(piece, wanted, item)


def _overlap(piece: Piece, wanted: Region, item: int) -> Iterator[Run]:
    offset, target, row_bytes = piece.offset, 0, item
    file_step = box_step = item
    axes: list[tuple[int, int, int]] = []  # (count, stride in the file, stride in the box), innermost first
    for slab, origin, length in zip(reversed(wanted), reversed(piece.origin), reversed(piece.shape)):
        start, stop = max(slab.start, origin), min(slab.stop, origin + length)
        count = stop - start
        offset += (start - origin) * file_step
        target += (start - slab.start) * box_step
        if count > 1:
            # The rows of this axis continue the axis before it, or they are an axis of their own.
            inner, file_stride, box_stride = axes.pop() if axes else (1, 0, 0)
            if inner == 1 and file_step == box_step == row_bytes:
                row_bytes *= count
            elif inner == 1:
                axes.append((count, file_step, box_step))
            elif file_step == inner * file_stride and box_step == inner * box_stride:
                axes.append((inner * count, file_stride, box_stride))
            else:
                axes += [(inner, file_stride, box_stride), (count, file_step, box_step)]
        file_step *= length
        box_step *= slab.stop - slab.start
    count, stride, target_stride = axes[0] if axes else (1, row_bytes, row_bytes)
    for indices in itertools.product(*(range(outer) for outer, _, _ in reversed(axes[1:]))):
        steps = list(zip(indices, reversed(axes[1:])))
        yield Run(
            piece,
            offset + sum(index * file_stride for index, (_, file_stride, _) in steps),
            row_bytes,
            stride,
            count,
            target + sum(index * box_stride for index, (_, _, box_stride) in steps),
            target_stride,
        )


def boxes(wanted: Region, item: int, at_most: int) -> Iterator[Region]:
    """Cut a box, in C order, into boxes of at most `at_most` bytes (one element at least).

    Writers stream a tensor so: each box is a dense stretch of the wanted one.
    """
    sizes = [slab.stop - slab.start for slab in wanted]
    if not all(sizes):
        return
    axis = next((i for i in range(len(sizes)) if math.prod(sizes[i + 1 :]) * item <= at_most), len(sizes) - 1)
    step = max(1, at_most // (math.prod(sizes[axis + 1 :]) * item))
    outer = [[slice(i, i + 1) for i in range(slab.start, slab.stop)] for slab in wanted[:axis]]
    slab = wanted[axis]
    parts = [slice(start, min(slab.stop, start + step)) for start in range(slab.start, slab.stop, step)]
    for box in itertools.product(*outer, parts):
        yield (*box, *wanted[axis + 1 :])
