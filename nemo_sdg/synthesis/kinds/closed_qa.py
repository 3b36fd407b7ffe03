"""Questions and tasks that a document answers; document and task are then joined in one of several ways (3.2.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nemo_sdg.synthesis.documents import Document
from nemo_sdg.synthesis.kinds.plan import Item, Kind, World
from nemo_sdg.synthesis.kinds.steps import Lists, Values


def _begin(world: World, topics: Sequence[Item]) -> list[Item]:
    return [Item(str(n), facts=_facts(document)) for n, document in enumerate(world.documents)]


def _facts(document: Document) -> dict[str, str]:
    return {"document": document.id, **({"piece_of": document.of} if document.of else {})}


def _about(world: World, items: Sequence[Item]) -> Iterable[tuple[Item, Values]]:
    for number in range(world.asks if items else 0):
        item = items[number % len(items)]
        yield item, {"document": world.texts[item.facts["document"]], "n": world.per_ask}


def _join(world: World, item: Item) -> Item:
    template = world.templates.draw("join", world.draw("join", item.id))
    text = world.render(template, document=world.texts[item.facts["document"]], task=item.text)
    return item.but(template, text=text)


KIND = Kind(
    "closed_qa",
    lambda world: (Lists("tasks", _about),),
    slots={"tasks": {"document": "x", "n": 3}, "join": {"document": "x", "task": "x"}},
    begin=_begin,
    finish=_join,
    needs="documents",
)
