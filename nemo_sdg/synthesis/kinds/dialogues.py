"""Conversations that wait for their last answer, with the generator in both parts (report 3.2.2 and 3.2.3).

two_turn gives user, assistant, user: the shape of the preference prompts. dialogue has as many user turns as the
setting says. Users have a personality, and polite beginnings are taken off what the generator writes in their place.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemo_sdg.synthesis.kinds.open_qa import QUESTION_SLOTS, QUESTIONS
from nemo_sdg.synthesis.kinds.plan import Item, Kind, Step, World
from nemo_sdg.synthesis.kinds.steps import Answer, Text, Values, history

TURN_SLOTS = {"history": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}], "persona": "x"}


def _persona(world: World, item: Item) -> str:
    """Who the user is: the same person in all turns."""
    personas = world.brief.personas or world.templates.lists["personas"]
    return world.draw("persona", item.id).choice(personas)


def values_of_turn(world: World, item: Item) -> Values:
    """What the template of a user's next turn is given."""
    return {"history": history(item), "persona": _persona(world, item)}


def _with_persona(world: World, item: Item) -> Item:
    return item.known(persona=_persona(world, item))


def _turns(world: World, number: int) -> Sequence[Step]:
    steps: list[Step] = [QUESTIONS]
    for turn in range(1, number):
        steps += [Answer(f"answer{turn}"), Text(f"turn{turn + 1}", values_of_turn, user_turn=True, template="next")]
    return steps


def _kind(name: str, turns: int | None) -> Kind:
    return Kind(
        name,
        lambda world: _turns(world, turns or world.turns),
        slots={"questions": QUESTION_SLOTS, "next": TURN_SLOTS},
        lists=("personas",),
        finish=_with_persona,
    )


TWO_TURN = _kind("two_turn", 2)
DIALOGUE = _kind("dialogue", None)
