"""What one kind of verifiable instruction is made of."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping

from nemo_sdg.synthesis.languages import Language

Spec = Mapping[str, Any]
"""{"kind": name, parameter: value, ...}: plain values, so that a row can hold it."""
AT_LEAST, AT_MOST, EXACTLY = "at_least", "at_most", "exactly"


@dataclass
class Pool:
    """What parameters are drawn from. Keywords are handed out once, so that no two instructions speak of one word."""

    chance: random.Random
    language: Language
    lists: Mapping[str, tuple[str, ...]]
    """starts, ends, options, ... of conf/prompts/instructions.yaml."""
    keywords: list[str] = field(default_factory=list)
    prompt: str = ""
    """What the instruction will be joined to."""

    def number(self, low: int, high: int, step: int = 1) -> int:
        return self.chance.randrange(low, high + 1, step)

    def relation(self) -> str:
        return self.chance.choice((AT_LEAST, AT_MOST))

    def take(self, count: int) -> list[str] | None:
        """So many keywords; None when fewer are left."""
        if len(self.keywords) < count:
            return None
        return [self.keywords.pop(self.chance.randrange(len(self.keywords))) for _ in range(count)]


@dataclass(frozen=True)
class Kind:
    """One kind of instruction."""

    name: str
    holds: Callable[[str, Spec], bool]
    """Whether a response follows it; the response is not blank."""
    parameters: Mapping[str, type | tuple[type, ...]]
    """What its spec has besides `kind`."""
    draw: Callable[[Pool], dict[str, Any] | None] | None = None
    """Its parameters; None of the function when the pool has none, None in its place for kinds that are never drawn."""
    claims: frozenset[str] = frozenset()
    """Parts of a response that it settles: two kinds that claim one part are never drawn together."""
    excludes: frozenset[str] = frozenset()
    """Kinds that it does not go with, besides."""
    only: frozenset[str] | None = None
    """Kinds that it goes with alone; None for those that settle a part and not the whole."""
    cased: bool = False
    """Whether it needs letters that have two cases."""


def compared(count: int, spec: Spec) -> bool:
    """Whether a count is as the spec's `relation` and `count` say."""
    wanted = spec["count"]
    return {AT_LEAST: count >= wanted, AT_MOST: count <= wanted, EXACTLY: count == wanted}[spec["relation"]]


def kind(
    name: str,
    holds: Callable[[str, Spec], bool],
    parameters: Mapping[str, type | tuple[type, ...]],
    draw: Callable[[Pool], dict[str, Any] | None] | None,
    *,
    claims: str = "",
    excludes: str = "",
    only: str | None = None,
    cased: bool = False,
) -> Kind:
    """A kind whose sets are written as words."""
    alone = None if only is None else frozenset(only.split())
    return Kind(name, holds, parameters, draw, frozenset(claims.split()), frozenset(excludes.split()), alone, cased)
