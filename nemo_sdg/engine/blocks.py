"""Which blocks of a lane are free, and which beginnings of prompts are kept. Bookkeeping only: no tensors, no torch."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from nemo_sdg.engine.budget import BLOCK


class BlockPool:
    """The blocks of the rows that are under way.

    What one row alone reads is taken from the bottom, what several rows share from the top: each kind lies close together,
    so that attention reads a slice of memory and copies nothing. What is reserved beforehand cannot run out later.
    """

    def __init__(self, blocks: int) -> None:
        self.size = blocks
        self.unreserved = blocks
        self._free_K = np.ones(blocks, dtype=bool)

    @property
    def used(self) -> int:
        return int(self.size - self._free_K.sum())

    @property
    def lowest(self) -> int | None:
        """The free block that `take` would give."""
        block = int(self._free_K.argmax())
        return block if self._free_K[block] else None

    def reserve(self, blocks: int) -> bool:
        """Sets blocks aside for later; False if so many are not there."""
        if blocks > self.unreserved:
            return False
        self.unreserved -= blocks
        return True

    def release(self, blocks: int) -> None:
        self.unreserved += blocks

    def take(self, *, shared: bool = False) -> int:
        """A free block, out of what was reserved."""
        block = self.size - 1 - int(self._free_K[::-1].argmax()) if shared else int(self._free_K.argmax())
        assert self._free_K[block], "more blocks are taken than were reserved"
        self._free_K[block] = False
        return block

    def give(self, block: int) -> None:
        assert not self._free_K[block]
        self._free_K[block] = True


class PrefixStore:
    """Copies of whole blocks of earlier prompts, by everything that stands before and in them; the least used goes first.

    Only what a prefill has computed is kept: a decode step rounds otherwise, and then a text would depend on
    whether the store still had its beginning.
    """

    def __init__(self, first: int, blocks: int) -> None:
        self._free = list(range(first + blocks - 1, first - 1, -1))
        self._kept: OrderedDict[bytes, int] = OrderedDict()

    def find(self, names: Sequence[bytes]) -> list[int]:
        """The blocks of the longest beginning that is kept."""
        known = list(takewhile(self._kept.__contains__, names))
        for name in reversed(known):  # its first block is the last to go: without it the others are of no use
            self._kept.move_to_end(name)
        return [self._kept[name] for name in known]

    def add(self, name: bytes) -> int | None:
        """The block to copy to; None if it is there already, or nothing can be kept."""
        if name in self._kept:
            self._kept.move_to_end(name)
            return None
        if self._free:
            block = self._free.pop()
        elif self._kept:
            _, block = self._kept.popitem(last=False)
        else:
            return None
        self._kept[name] = block
        return block


def block_names(token_ids: Sequence[int]) -> list[bytes]:
    """A name for each whole block of a prompt, which covers the blocks before it too."""
    names, before = [], b""
    for start in range(0, len(token_ids) - BLOCK + 1, BLOCK):
        content = array("q", token_ids[start : start + BLOCK]).tobytes()
        before = hashlib.blake2b(before + content, digest_size=16).digest()
        names.append(before)
    return names
