"""How many questions the making of prompts takes at most, before one is asked."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_sdg.synthesis.kinds.plan import Item, Kind, World
from nemo_sdg.synthesis.kinds.steps import Lists, YesNo


def most_questions(kind: Kind, world: World, topics: Sequence[Item]) -> tuple[int, list[Item]]:
    """(questions of all steps at most, the items that the last one leaves at most): every list is as long as it was asked
    to be, every answer is taken, and no two are the same.

    Args:
        topics: as many as there can be.
    """
    items, questions = kind.begin(world, topics), 0
    for step in kind.steps(world):
        if isinstance(step, Lists):
            asks = list(step.ask(world, items))
            questions += len(asks)
            # Entries that are shared out over the items are rounded up: over fewer items that may be one more for each.
            shared = len(asks) == len(items)
            items = [
                step.into(ask.item.but(id=f"{ask.item.id}.{entry}"), f"entry {number} {entry}")
                for number, ask in enumerate(asks)
                for entry in range(ask.wanted + (shared and number > 0))
            ]
        elif isinstance(step, YesNo):
            asks = list(step.ask(world, items))
            questions, items = questions + sum(ask.messages is not None for ask in asks), [ask.item for ask in asks]
        else:  # one question about an item at most
            questions += len(items)
    return questions, items
