"""Topics: wide ones first, then narrow ones below each; what the other kinds ask about (report 3.2.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nemo_sdg.synthesis.kinds.plan import SPARE, Item, Kind, World
from nemo_sdg.synthesis.kinds.steps import Lists, Values


def _wide(world: World) -> int:
    return math.ceil(math.sqrt(world.topics))


def _ask_wide(world: World, items: Sequence[Item]) -> Iterable[tuple[Item, Values]]:
    for item in items:
        yield item, {"n": _wide(world)}


def _ask_narrow(world: World, items: Sequence[Item]) -> Iterable[tuple[Item, Values]]:
    for item in items:
        yield item, {"topic": item.topic, "n": math.ceil(world.topics * SPARE / len(items))}


def _topic(item: Item, text: str) -> Item:
    return item.but(text=text, topic=text)


def with_own(world: World, found: Sequence[Item]) -> list[Item]:
    """The topics of the brief and those that were found, each with itself as its text."""
    own = [Item(f"own.{number}", topic, topic) for number, topic in enumerate(world.brief.topics)]
    return own + [item for item in found if item.topic not in world.brief.topics][: world.topics]


def own_or_more(world: World, topics: Sequence[Item]) -> list[Item]:
    """Where to begin: nowhere when no topics are to be found."""
    return [Item("")] if world.topics else []


KIND = Kind(
    "topics",
    lambda world: (
        Lists("wide", _ask_wide, names=True, into=_topic),
        Lists("narrow", _ask_narrow, names=True, into=_topic),
    ),
    slots={"wide": {"n": 3}, "narrow": {"n": 3, "topic": "x"}},
    begin=own_or_more,
    needs="nothing",
)
