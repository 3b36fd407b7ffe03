"""Boxes of stored tensors cut into blocks of files, and handed to the threads that read them. No torch."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np

from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.names import Region
from nemo_sdg.checkpoints.runs import Run, runs
from nemo_sdg.checkpoints.survey import check_size, extents
from nemo_sdg.checkpoints.tensors import ITEM_BYTES, StoredTensor
from nemo_sdg.errors import CheckpointError

Put = Callable[[np.ndarray, int, int], None]
"""Takes rows of raw bits [rows, elements], the element of the box that they begin at, and elements from row to row."""


class Box(NamedTuple):
    """A box of a stored tensor, and who gets it."""

    tensor: StoredTensor
    wanted: Region
    layer: Optional[int]
    into: Union[np.ndarray, Put]
    """The memory of the dense C-order box as uint8 [bytes], or a function that takes rows of raw bits."""


@dataclass
class Reading:
    """What was read."""

    num_bytes: int = 0
    files: set[Path] = field(default_factory=set)
    ranges: list[tuple[Path, int, int]] | None = None
    """(file, offset, length) of every read, where a list is given."""


class _Source:
    """A file while blocks of it are being read: opened by the first thread that needs it, closed after the last."""

    def __init__(self, group: list[tuple[Run, Box]]) -> None:
        self.file = group[0][0].file
        self.users = 1  # the one that cuts it into blocks
        self._group = group
        self._descriptor: int | None = None
        self._opening = threading.Lock()

    def descriptor(self, files: Files) -> int:
        with self._opening:
            if self._descriptor is None:
                ((exact, end),) = extents((run.piece, box.tensor.dtype) for run, box in self._group).values()
                try:
                    self._descriptor = files.open(self.file)
                except FileNotFoundError:
                    check_size(self.file, None, exact, end)
                except OSError as error:
                    raise unreadable(self.file, error) from error
                check_size(self.file, os.fstat(self._descriptor).st_size, exact, end)
            return self._descriptor

    def leave(self) -> None:
        self.users -= 1
        if self.users == 0 and self._descriptor is not None:
            os.close(self._descriptor)


class Block(NamedTuple):
    number: int
    source: _Source
    run: Run
    box: Box


class Blocks:
    """What the threads share: hands out blocks in the order of the files, and collects what became of them."""

    def __init__(self, files: Files, wanted: Iterable[Box], reading: Reading, block_bytes: int) -> None:
        self.files, self.reading = files, reading
        self._lock = threading.Lock()
        self._errors: list[tuple[int, BaseException]] = []
        groups = _by_file(wanted)
        self._left = sum(run.num_bytes for group in groups for run, _ in group)
        self._rest = self._cut(groups, block_bytes)

    def _cut(self, groups: list[list[tuple[Run, Box]]], block_bytes: int) -> Iterator[Block]:
        number = 0
        for group in groups:
            source = _Source(group)
            self.reading.files.add(source.file)
            try:
                for run, box in group:
                    for block in run.cut(block_bytes, ITEM_BYTES[box.tensor.dtype]):
                        yield Block(number, source, block, box)
                        number += 1
            finally:
                source.leave()

    def take(self) -> Block | None:
        """The next block; None when there is no more, or a thread has failed."""
        with self._lock:
            block = next(self._rest, None)
            if block is not None:
                block.source.users += 1
            return block

    def done(self, block: Block, error: BaseException | None = None) -> None:
        with self._lock:
            if error is not None:
                self._errors.append((block.number, error))
                self._rest.close()
            else:
                self._left -= block.run.num_bytes
                self.reading.num_bytes += block.run.num_bytes
                if self.reading.ranges is not None:
                    self.reading.ranges += [(block.source.file, *found) for found in block.run.ranges()]
            block.source.leave()

    def stop(self) -> None:
        with self._lock:
            self._rest.close()

    def finish(self, *, given_up: bool) -> None:
        """Raises the first error in the order of the files, whichever thread met one first.

        Args:
            given_up: not all was to be read.
        """
        if self._errors:
            raise min(self._errors, key=lambda entry: (isinstance(entry[1], Exception), entry[0]))[1]
        assert given_up or self._left == 0, f"{self._left} bytes were left unread"


def _by_file(wanted: Iterable[Box]) -> list[list[tuple[Run, Box]]]:
    """The runs of each file in the order of their offsets."""
    groups: dict[Path, list[tuple[Run, Box]]] = {}
    for box in wanted:
        expected = math.prod(slab.stop - slab.start for slab in box.wanted) * ITEM_BYTES[box.tensor.dtype]
        for run in runs(box.tensor, box.wanted, box.layer):
            groups.setdefault(run.file, []).append((run, box))
            expected -= run.num_bytes
        if expected:
            raise CheckpointError(
                f"{box.tensor.key} is not covered by its pieces", where=box.tensor.where,
                found=f"{abs(expected)} bytes too {'few' if expected > 0 else 'many'}",
                way_out="download the checkpoint again",
            )  # fmt: skip
    for group in groups.values():
        group.sort(key=lambda entry: entry[0].offset)
    return list(groups.values())


def unreadable(file: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        "the file cannot be read", where=file, found=error.strerror, way_out="check its permissions and its disk"
    )
