"""Writing tasks: a type of document and a topic, then detail, format and limits are added (report 3.2.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nemo_sdg.synthesis.kinds.plan import Item, Kind, World
from nemo_sdg.synthesis.kinds.steps import Lists, Text, Values, per_topic


def _by_type(world: World, items: Sequence[Item]) -> Iterable[tuple[Item, Values]]:
    """Topics in turn; the types too, moved on by one each time the topics begin again."""
    types = world.brief.document_types or world.templates.lists["document_types"]
    for number, (item, values) in enumerate(per_topic(world, items)):
        kind = types[(number + number // len(items)) % len(types)]
        yield item.known(document_type=kind), {**values, "document_type": kind}


def _refine(world: World, item: Item) -> Values:
    return {"task": item.text, "topic": item.topic, "document_type": item.facts["document_type"]}


KIND = Kind(
    "writing",
    lambda world: (Lists("tasks", _by_type), Text("refine", _refine)),
    slots={
        "tasks": {"topic": "x", "document_type": "x", "n": 3, "examples": ["x"]},
        "refine": {"task": "x", "topic": "x", "document_type": "x"},
    },
    lists=("document_types",),
)
