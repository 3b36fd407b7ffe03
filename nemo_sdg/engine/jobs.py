"""What the scheduler keeps of a response, and the two kinds of forward pass that it asks for. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Union

import numpy as np

from nemo_sdg.engine.budget import BLOCK, blocks_of
from nemo_sdg.engine.requests import Request, Sampling

Copy = tuple[int, int, int, int]
"""A block of keys and values to copy: from lane, from block, to lane, to block."""


@dataclass(eq=False)
class Row:
    """One response under way."""

    ticket: int
    request: Request
    sampling: Sampling
    limit: int
    """Tokens of prompt and response at most."""
    uniforms: np.ndarray
    """One number of its own stream for each position of the response."""
    group: Group = field(init=False)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    """Its own blocks, which follow those that the group shares."""
    told: int = 0
    """Tokens that an event has carried already."""
    cancelled: bool = False

    @property
    def length(self) -> int:
        """Tokens whose keys and values exist once the latest token has been through the model."""
        return len(self.request.prompt_ids) + len(self.tokens)

    def own_blocks(self) -> int:
        """Blocks that it may come to need for itself."""
        return blocks_of(self.limit) - self.group.shared_blocks()


@dataclass(eq=False)
class Group:
    """Responses to one prompt, which is computed once for all of them."""

    rows: list[Row]
    width: int
    """Responses that may share the prompt's blocks. It follows from the request, never from who happens to be here: the
    queries of so many rows are one matrix, and its size decides the rounding."""
    names: list[bytes]
    """Of the prompt's whole blocks; see `blocks.block_names`."""
    lane: int = -1
    shared: list[int] = field(default_factory=list)
    done: int = 0
    """Tokens of the prompt that have been given to the model, or were found in the store."""
    alive: int = 0
    """Rows that are not finished."""

    @property
    def prompt_ids(self) -> Sequence[int]:
        return self.rows[0].request.prompt_ids

    def shared_blocks(self) -> int:
        return len(self.prompt_ids) // BLOCK if self.width > 1 else 0

    def needs(self) -> int:
        """Blocks for the whole group."""
        return self.shared_blocks() + sum(row.own_blocks() for row in self.rows)

    def next_unit(self) -> int:
        """Tokens of the next piece of the prompt: up to the end of a block. A text would otherwise depend on where
        the prompts before it happened to end."""
        return min(BLOCK, len(self.prompt_ids) - self.done)


@dataclass(frozen=True)
class Unit:
    """A piece of one prompt within a prefill: at most one block."""

    offset: int
    """Its first token among those of the forward pass."""
    start: int
    """Its first token in the prompt; a multiple of BLOCK."""
    count: int
    blocks: tuple[int, ...]
    """The prompt's blocks up to this one."""


@dataclass
class Prefill:
    """Pieces of several prompts, one after the other, without padding between them."""

    lane: int
    size: int
    """Tokens of the forward pass, with the padding behind the last unit."""
    token_ids: list[int] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)
    ends: list[tuple[int, Group]] = field(default_factory=list)
    """Where the last token of a prompt stands: from here its responses get their first token."""
    before: list[Copy] = field(default_factory=list)
    after: list[Copy] = field(default_factory=list)


@dataclass
class Decode:
    """One token for each row of a lane; None is an empty slot, which runs along."""

    lane: int
    rows: list[Row | None]
    before: list[Copy] = field(default_factory=list)


Job = Union[Prefill, Decode]


@dataclass(kw_only=True)
class Stats:
    """What has been done so far, in counts."""

    stages: int = 1
    ticks: int = 0
    """Turns of the pipeline, with those in which nothing could be sent into it."""
    bubbles: int = 0
    """Turns in which nothing was sent into the pipeline."""
    runs: int = 0
    """Times that the pipeline was filled from empty."""
    decode_steps: int = 0
    decode_rows: int = 0
    """Rows that got a token in a decode step."""
    prefill_steps: int = 0
    prefill_tokens: int = 0
    padded_tokens: int = 0
    reused_tokens: int = 0
    """Prompt tokens whose keys and values were taken from the store."""
    moved_rows: int = 0
    peak_blocks: int = 0

    @property
    def stage_ticks(self) -> int:
        """Turns of all stages, from the first job of a run until its last result."""
        return self.stages * (self.ticks + self.runs * (self.stages - 1))

    @property
    def idle_ticks(self) -> int:
        """Turns in which a stage had nothing to do: bubbles, and the filling and emptying of the pipeline."""
        return self.stages * (self.bubbles + self.runs * (self.stages - 1))
