"""Conversations in which the user leaves the topic that the system text sets, and the assistant should not follow
(CantTalkAboutThis, Sreedhar et al. 2024, arXiv 2404.03820; report 3.2.5)."""

from __future__ import annotations

from nemo_sdg.synthesis.kinds.plan import Item, Kind, World, cycled
from nemo_sdg.synthesis.kinds.steps import Answer, Text, Values, history
from nemo_sdg.synthesis.requirements import Requirement


def _rules(item: Item) -> str:
    return item.turns[0]["content"]


def _scene(item: Item, text: str) -> Item:
    return item.but(turns=({"role": "system", "content": text},))


def _turn(world: World, item: Item) -> Values:
    return {"topic": item.topic, "rules": _rules(item), "history": history(item)}


def _finish(world: World, item: Item) -> Item:
    template = world.templates["stays"]
    line = world.render(template, topic=item.topic)
    return item.but(template, checks=(Requirement(line, "followed a distraction"),)).known(distractor=True)


_TURN_SLOTS = {"topic": "x", "rules": "x", "history": [{"role": "user", "content": "x"}]}
KIND = Kind(
    "topic_following",
    lambda world: (
        Text("scene", lambda world, item: {"topic": item.topic, "task": item.facts["task"]}, into=_scene),
        Text("opening", lambda world, item: {"topic": item.topic, "rules": _rules(item)}, user_turn=True),
        Answer("answer"),
        Text("distractor", _turn, user_turn=True),
    ),
    slots={
        "scene": {"topic": "x", "task": "x"},
        "opening": {"topic": "x", "rules": "x"},
        "distractor": _TURN_SLOTS,
        "stays": {"topic": "x"},
    },
    begin=cycled,
    finish=_finish,
)
