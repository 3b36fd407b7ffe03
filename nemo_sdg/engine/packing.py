"""Conversations in one forward pass: behind one another without padding, what several begin with only once. No torch.

A pack is a forest of segments. A segment attends to the segments that it continues and, causally, to itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

SHARED = 32
"""A common beginning of fewer tokens is not worth a segment of its own."""


@dataclass(frozen=True)
class Segment:
    """Tokens that stand together."""

    offset: int
    """Its first token in the pack."""
    start: int
    """Position of its first token in the conversations that hold it."""
    count: int
    parent: int
    """The segment that it continues, by index in the pack; -1 for a beginning."""


@dataclass
class Pack:
    """One forward pass."""

    token_ids: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    leaves: list[tuple[int, int]] = field(default_factory=list)
    """(conversation, segment in which it ends)."""

    def places(self, leaf: int) -> np.ndarray:
        """Where the tokens of the conversation that ends in this segment stand in the pack."""
        chain = []
        while leaf >= 0:
            segment = self.segments[leaf]
            chain.append(np.arange(segment.offset, segment.offset + segment.count))
            leaf = segment.parent
        return np.concatenate(chain[::-1])


def pack(conversations: Sequence[Sequence[int]], limit: int) -> Iterator[Pack]:
    """Every conversation in exactly one pack.

    Args:
        limit: tokens of a pack at most; a longer conversation goes alone.
    """
    arrays = [np.asarray(conversation, dtype=np.int64) for conversation in conversations]
    # In the order of a dictionary, those with a common beginning are neighbours.
    order = sorted(range(len(arrays)), key=lambda index: (list(conversations[index]), index))
    common = [_common(arrays[a], arrays[b]) for a, b in zip(order, order[1:])]
    current = _Packing()
    for index, cuts in zip(order, _cuts([len(arrays[index]) for index in order], common)):
        if current.pack.leaves and len(current.pack.token_ids) + current.needs(arrays[index], cuts) > limit:
            yield current.pack
            current = _Packing()
        current.add(index, arrays[index], cuts)
    if current.pack.leaves:
        yield current.pack


class _Packing:
    """A pack that is being filled."""

    def __init__(self) -> None:
        self.pack = Pack()
        self._tokens: list[np.ndarray] = []
        self._path: list[int] = []
        """The segments of the conversation that was added last."""

    def _shared(self, tokens: np.ndarray, cuts: Sequence[int]) -> list[int]:
        """Those of them that this conversation begins with."""
        shared: list[int] = []
        for index, end in zip(self._path, cuts):
            segment = self.pack.segments[index]
            if segment.start + segment.count != end or not np.array_equal(self._tokens[index], tokens[segment.start : end]):
                break
            shared.append(index)
        return shared

    def needs(self, tokens: np.ndarray, cuts: Sequence[int]) -> int:
        shared = self._shared(tokens, cuts)
        return len(tokens) - (cuts[len(shared) - 1] if shared else 0)

    def add(self, index: int, tokens: np.ndarray, cuts: Sequence[int]) -> None:
        """A conversation, cut into segments that end at these places."""
        self._path = self._shared(tokens, cuts)
        start = cuts[len(self._path) - 1] if self._path else 0
        for end in cuts[len(self._path) :]:
            parent = self._path[-1] if self._path else -1
            self._path.append(len(self.pack.segments))
            self.pack.segments.append(Segment(len(self.pack.token_ids), start, end - start, parent))
            self._tokens.append(tokens[start:end])
            self.pack.token_ids += tokens[start:end].tolist()
            start = end
        self.pack.leaves.append((index, self._path[-1]))


def _common(left: np.ndarray, right: np.ndarray) -> int:
    """Tokens that both begin with."""
    length = min(len(left), len(right))
    differs = left[:length] != right[:length]
    return int(differs.argmax()) if differs.any() else length


def _cuts(lengths: Sequence[int], common: Sequence[int]) -> list[list[int]]:
    """Where each conversation is cut: where a beginning ends that neighbours share, and at its end.

    Args:
        lengths: of the conversations in their order.
        common: tokens that each has in common with the next one.
    """
    cuts: list[list[int]] = [[] for _ in lengths]

    def share(first: int, last: int, depth: int) -> None:
        """Cuts those from first to last, which have `depth` tokens in common already."""
        if first == last:
            return
        shallow = min(common[first:last])
        if shallow - depth >= SHARED:
            for index in range(first, last + 1):
                cuts[index].append(shallow)
            depth = shallow
        # Every place is looked at once per depth: many conversations may begin with the same system turn.
        for place in range(first, last):
            if common[place] < depth + SHARED:
                share(first, place, depth)
                first = place + 1
        share(first, last, depth)

    if lengths:
        share(0, len(lengths) - 1, 0)
    return [[*(cut for cut in ends if cut < length), length] for ends, length in zip(cuts, lengths)]
