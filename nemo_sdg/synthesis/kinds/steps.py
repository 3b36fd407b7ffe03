"""The steps that kinds are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_sdg.synthesis.answers import plain, without_openers, yes_or_no
from nemo_sdg.synthesis.kinds.plan import Ask, Item, World
from nemo_sdg.synthesis.lists import parse_list

Values = Mapping[str, Any]


def asked(text: str) -> tuple[dict[str, str], ...]:
    """A question on its own."""
    return ({"role": "user", "content": text},)


@dataclass(frozen=True)
class Lists:
    """Asks for lists; every entry becomes an item."""

    name: str
    """Also of its template."""
    spread: Callable[[World, Sequence[Item]], Iterable[tuple[Item, Values]]]
    """What is asked about: items, each with the values of the template; `n` is the number of entries."""
    names: bool = False
    """Entries are topics or keywords, and not whole texts."""
    into: Callable[[Item, str], Item] = lambda item, text: item.but(text=text)
    """An item for an entry, from the item that was asked about."""

    def ask(self, world: World, items: Sequence[Item]) -> Iterable[Ask]:
        template = world.templates[self.name]
        for number, (item, values) in enumerate(self.spread(world, items)):
            # Two questions about one item have items of their own below them.
            item = item.but(template, id=f"{item.id}.{number}" if item.id else str(number))
            yield Ask(item, asked(world.render(template, **values)), template, values["n"])

    def read(self, world: World, ask: Ask, answer: str) -> tuple[list[Item], Mapping[str, int]]:
        listed = parse_list(answer, names=self.names)
        taken = listed.items[: ask.wanted]
        left_out = {**listed.dropped(), "more entries than asked for": len(listed.items) - len(taken)}
        if not listed.items and not listed.dropped():
            left_out["no list in the answer"] = 1
        items = [self.into(ask.item.but(id=f"{ask.item.id}.{i}"), text) for i, text in enumerate(taken)]
        return items, {reason: count for reason, count in left_out.items() if count}


@dataclass(frozen=True)
class Text:
    """Asks for one text: a refined question, a scene, a user's next turn."""

    name: str
    values: Callable[[World, Item], Values]
    into: Callable[[Item, str], Item] = lambda item, text: item.but(text=text)
    user_turn: bool = False
    """The text is what a user says next: its polite beginning is taken off."""
    template: str = ""
    """Where it is not named like the step."""
    when: Callable[[Item], bool] = lambda item: True
    """The others pass on."""

    def ask(self, world: World, items: Sequence[Item]) -> Iterable[Ask]:
        template = world.templates[self.template or self.name]
        for item in items:
            if self.when(item):
                text = world.render(template, **self.values(world, item))
                yield Ask(item.but(template), asked(text), template)
            else:
                yield Ask(item, None)

    def read(self, world: World, ask: Ask, answer: str) -> tuple[list[Item], Mapping[str, int]]:
        text = plain(answer, world.language)
        if text and self.user_turn:
            text = without_openers(text, world.language)
            if not text:
                return [], {"nothing but politeness": 1}
        if not any(c.isalnum() for c in text):
            return [], {"no text in the answer": 1}
        return [self.into(ask.item, text)], {}


@dataclass(frozen=True)
class Answer:
    """Lets the generator answer an item's text as the assistant, with the conversation before it."""

    name: str
    when: Callable[[Item], bool] = lambda item: True
    """The others pass on."""
    accept: Callable[[Item, str], str | None] = lambda item, answer: None
    """Why an answer cannot be a part of the conversation; None where it can."""

    def ask(self, world: World, items: Sequence[Item]) -> Iterable[Ask]:
        for item in items:
            yield Ask(item, item.said(item.text).turns if self.when(item) else None)

    def read(self, world: World, ask: Ask, answer: str) -> tuple[list[Item], Mapping[str, int]]:
        reason = self.accept(ask.item, answer)
        if reason is not None:
            return [], {reason: 1}
        return [ask.item.said(ask.item.text, answer.strip()).but(text="")], {}


@dataclass(frozen=True)
class YesNo:
    """Keeps the items that the generator says yes to; those that `when` leaves out pass on."""

    name: str
    values: Callable[[World, Item], Values]
    when: Callable[[Item], bool] = lambda item: True

    def ask(self, world: World, items: Sequence[Item]) -> Iterable[Ask]:
        template = world.templates[self.name]
        for item in items:
            if self.when(item):
                yield Ask(item.but(template), asked(world.render(template, **self.values(world, item))), template)
            else:
                yield Ask(item, None)

    def read(self, world: World, ask: Ask, answer: str) -> tuple[list[Item], Mapping[str, int]]:
        said = yes_or_no(answer, world.language)
        if said:
            return [ask.item], {}
        return [], {"classified as no" if said is False else "neither yes nor no": 1}


def per_topic(world: World, items: Sequence[Item]) -> Iterable[tuple[Item, Values]]:
    """As many lists as are needed, over the items in turn."""
    for number in range(world.asks if items else 0):
        item = items[number % len(items)]
        yield item, {"topic": item.topic, "n": world.per_ask, "examples": world.examples(number)}


def history(item: Item) -> list[dict[str, str]]:
    """The conversation as a template sees it."""
    return [dict(turn) for turn in item.turns if turn["role"] != "system"]
