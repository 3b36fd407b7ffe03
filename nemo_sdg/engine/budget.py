"""How many keys and values a rank may hold, in whole blocks; computed alike by `plan` and by the engine, without torch.

Keys and values lie in blocks of `BLOCK` tokens. With pipeline stages the rows are shared out over as many lanes as there are
stages, so that each stage always has one to work on; each lane has slots and blocks of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_sdg.errors import ConfigError

BLOCK = 64
"""Tokens per block. The rounding of attention depends on the number of keys, so they are always attended block by block."""

FOURS = 4
"""Rows of a decode step, and the blocks that a row adds up, are a multiple of it: the last of another number are rounded in a way
of their own."""


@dataclass(frozen=True)
class Budget:
    """What one rank of a pipeline stage may hold."""

    lanes: int
    slots: int
    """Rows decoded at once in one lane."""
    blocks: int
    """Blocks of one lane for the rows that are under way."""
    store: int
    """Blocks of one lane that keep the beginnings of earlier prompts."""
    block_bytes: tuple[int, ...]
    """Bytes of one block on each pipeline stage: keys and values of all its layers, on one tensor-parallel rank."""

    def bytes(self, stage: int) -> int:
        """Bytes of keys and values on a rank of this stage."""
        return self.lanes * (self.blocks + self.store) * self.block_bytes[stage]


def blocks_of(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK)


def make_budget(
    *,
    groups: int,
    channels: int,
    context: int,
    stage_layers: Sequence[int],
    item_bytes: int,
    slots: int,
    prefill_tokens: int,
    kv_cache_bytes: int | None,
) -> Budget:
    """The budget of a replica.

    Args:
        groups: KV groups of one tensor-parallel rank.
        channels: of one head.
        context: tokens of prompt and response at most.
        stage_layers: layers of each pipeline stage.
        item_bytes: bytes of one number in the model's dtype.
        kv_cache_bytes: what a rank may hold; None is enough for every slot to fill the context, and for the prompts of
            one forward pass that wait for a slot.
    Raises:
        ConfigError: the bytes hold less than two blocks per lane.
    """
    lanes = len(stage_layers)
    per_layer = 2 * groups * BLOCK * channels * item_bytes
    block_bytes = tuple(layers * per_layer for layers in stage_layers)
    lane_slots = -(-slots // lanes)
    if kv_cache_bytes is None:
        blocks = lane_slots * blocks_of(context) + blocks_of(prefill_tokens)
        return Budget(lanes, lane_slots, blocks, blocks // 8, block_bytes)
    total = kv_cache_bytes // (lanes * max(block_bytes))
    if total < 2:
        raise ConfigError(
            "the bytes for keys and values do not hold one row", where="generate.kv_cache_bytes", found=kv_cache_bytes,
            expected=f"{2 * lanes * max(block_bytes)} at least", way_out="raise it, or set it to null",
        )  # fmt: skip
    store = total // 9
    return Budget(lanes, lane_slots, total - store, store, block_bytes)
