"""A question with instructions that a program can check, in three forms (report 3.2.1).

single: question and instructions in one turn. standing: the instructions of the first turn bind all later ones, and
the last turn asks something else. revise: the last turn asks for the answer again, as the instructions say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nemo_sdg.synthesis.instructions import check, draw
from nemo_sdg.synthesis.kinds.dialogues import TURN_SLOTS, values_of_turn
from nemo_sdg.synthesis.kinds.open_qa import QUESTION_SLOTS
from nemo_sdg.synthesis.kinds.plan import Ask, Item, Kind, World
from nemo_sdg.synthesis.kinds.steps import Answer, Lists, Text, per_topic
from nemo_sdg.synthesis.requirements import NOT_FOLLOWED, Requirement

FORMS = ("single", "standing", "revise")
_ONE_QUESTION = ("repeat_prompt", "choice")
"""Instructions that are about one question, and say nothing about a later one."""
_MOST = 3
"""Instructions of one prompt."""


class Instructed(Lists):
    """Questions, each with a form and instructions of its own."""

    def read(self, world: World, ask: Ask, answer: str) -> tuple[list[Item], Mapping[str, int]]:
        items, left_out = super().read(world, ask, answer)
        return [_instructed(world, item) for item in items], left_out


def _instructed(world: World, item: Item) -> Item:
    chance = world.draw("instructions", item.id)
    form, count = chance.choice(FORMS), chance.randint(1, _MOST)
    drawn = draw(
        chance, count, world.wordings, world.language, keywords=world.brief.terms, prompt=item.text,
        but=_ONE_QUESTION if form != "single" else (),
    )  # fmt: skip
    checks = tuple(
        Requirement(words, f"{NOT_FOLLOWED}: {spec['kind']}", True, spec) for spec, words, _ in drawn
    )
    digests = tuple(digest for _, _, digest in drawn)
    item = replace(item.known(form=form), checks=checks, templates=item.templates + digests)
    return item if form == "revise" else _joined(world, item, item.text)


def _joined(world: World, item: Item, question: str) -> Item:
    """The turn that gives the instructions, in the words of the item's form."""
    template = world.templates.draw(item.facts["form"], world.draw("join", item.id))
    lines = [one.line for one in item.checks]
    return item.but(template, text=world.render(template, question=question, instructions=lines))


def _accept(item: Item, answer: str) -> str | None:
    """A first answer that breaks what binds it teaches to break it; one that follows already has nothing to revise."""
    follows = all(check(one.spec, answer) for one in item.checks)
    if item.facts["form"] == "standing" and not follows:
        return "the first answer breaks the standing instruction"
    return "the first answer needs no revision" if item.facts["form"] == "revise" and follows else None


def _finish(world: World, item: Item) -> Item:
    return _joined(world, item, "") if item.facts["form"] == "revise" else item


_FORM_SLOTS = {"question": "x", "instructions": ["x", "y"]}
KIND = Kind(
    "instruction_following",
    lambda world: (
        Instructed("questions", per_topic),
        Answer("answer", when=lambda item: item.facts["form"] != "single", accept=_accept),
        Text("next", values_of_turn, user_turn=True, when=lambda item: item.facts["form"] == "standing"),
    ),
    slots={"questions": QUESTION_SLOTS, "next": TURN_SLOTS, **dict.fromkeys(FORMS, _FORM_SLOTS)},
    lists=("personas",),
    finish=_finish,
)
