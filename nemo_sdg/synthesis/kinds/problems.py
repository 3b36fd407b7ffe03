"""Mathematics and Python problems about keywords (report 3.2.1).

The pool of keywords: what the generator names for areas of the subject, and the terms of the brief that it says yes to
when it is asked whether they belong to the subject.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nemo_sdg.synthesis.kinds.plan import SPARE, Ask, Item, Kind, World
from nemo_sdg.synthesis.kinds.steps import Lists, Text, Values, YesNo


def _areas(world: World, items: Sequence[Item]) -> Iterable[tuple[Item, Values]]:
    for item in items:
        yield item, {"n": max(1, math.ceil(math.sqrt(world.count)))}


def _keywords(world: World, items: Sequence[Item]) -> Iterable[tuple[Item, Values]]:
    for item in items:
        yield item, {"area": item.topic, "n": math.ceil(world.count * SPARE / len(items))}


def _named(item: Item, text: str) -> Item:
    return item.but(text=text).known(keyword=text)


class Classify(YesNo):
    """Puts the brief's terms among the keywords, each asked about first; keywords pass on."""

    def ask(self, world: World, items: Sequence[Item]) -> Iterable[Ask]:
        terms = [Item(f"term.{n}", term, facts={"keyword": term}) for n, term in enumerate(world.brief.terms)]
        return super().ask(world, [*terms, *items])


def _problem(world: World, item: Item) -> Values:
    levels = world.templates.lists["levels"]
    return {"keyword": item.facts["keyword"], "level": world.draw("level", item.id).choice(levels)}


def problems(name: str) -> Kind:
    """The kind of this name, with its texts in the file of this name."""
    steps = (
        Lists("areas", _areas, names=True, into=lambda item, text: item.but(text=text, topic=text)),
        Lists("keywords", _keywords, names=True, into=_named),
        Classify(
            "belongs", lambda world, item: {"keyword": item.text}, when=lambda item: item.id.startswith("term.")
        ),
        Text("problem", _problem),
    )
    return Kind(
        name,
        lambda world: steps,
        slots={
            "areas": {"n": 3},
            "keywords": {"area": "x", "n": 3},
            "belongs": {"keyword": "x"},
            "problem": {"keyword": "x", "level": "x"},
        },
        lists=("levels",),
        begin=lambda world, topics: [Item("")],
        needs="nothing",
    )
