"""Requests that a language model alone cannot fulfil: the right answer says so, and offers what it can (3.2.5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nemo_sdg.synthesis.kinds.plan import Item, Kind, World
from nemo_sdg.synthesis.kinds.steps import Lists, Values, per_topic
from nemo_sdg.synthesis.requirements import Requirement


def _by_ability(world: World, items: Sequence[Item]) -> Iterable[tuple[Item, Values]]:
    abilities = world.templates.lists["abilities"]
    for number, (item, values) in enumerate(per_topic(world, items)):
        ability = abilities[(number + number // len(items)) % len(abilities)]
        yield item.known(ability=ability), {**values, "ability": ability}


def _finish(world: World, item: Item) -> Item:
    template = world.templates["honest"]
    line = world.render(template, ability=item.facts["ability"])
    return item.but(template, checks=(Requirement(line, "claimed what it cannot do"),))


KIND = Kind(
    "incapable",
    lambda world: (Lists("requests", _by_ability),),
    slots={"requests": {"topic": "x", "ability": "x", "n": 3, "examples": ["x"]}, "honest": {"ability": "x"}},
    lists=("abilities",),
    finish=_finish,
)
