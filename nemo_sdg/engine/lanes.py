"""One lane of the scheduler: slots, and the blocks of the rows in them and on their way to them. No torch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from nemo_sdg.engine.blocks import BlockPool, PrefixStore
from nemo_sdg.engine.jobs import Copy, Group, Row

_MOVES = 8
"""Blocks that move within a lane before one decode step at most."""


@dataclass
class Lane:
    """Rows that decode together. With pipeline stages there are as many lanes as stages."""

    pool: BlockPool
    store: PrefixStore
    slots: list[Row | None]
    prefilling: list[Group] = field(default_factory=list)
    ready: deque[Row] = field(default_factory=deque)
    arriving: int = 0
    """Rows whose first token is on its way back."""
    busy: bool = False
    """A decode step is under way."""

    @property
    def active(self) -> int:
        return sum(row is not None for row in self.slots)

    @property
    def lacking(self) -> int:
        """Slots for which no row is ready."""
        return len(self.slots) - self.active - len(self.ready) - self.arriving

    @property
    def held(self) -> int:
        """Rows in this lane, wherever they stand."""
        return self.active + len(self.ready) + self.arriving + sum(len(group.rows) for group in self.prefilling)

    def compact(self, index: int, rows: list[Row | None]) -> list[Copy]:
        """Blocks far up move to free places further down: a decode step reads all that lies below its highest block."""
        held = {block: row for row in rows if row is not None for block in row.blocks}
        copies: list[Copy] = []
        while held and len(copies) < _MOVES and (top := max(held)) > len(held) * 9 // 8:
            free = self.pool.lowest
            if free is None or free >= top:
                break
            row = held.pop(top)
            held[self.pool.take()] = row
            row.blocks[row.blocks.index(top)] = free
            self.pool.give(top)
            copies.append((index, top, index, free))
        return copies
