"""The interface of a kind of prompts: named steps, each a pure function from items to questions and from answers to
items.

A kind asks nobody itself. Whoever runs it (stages/asking.py) lets a generator answer the questions of a step, keeps the
answers, and calls the next step; the same answers give the same items, so a run that was killed asks nothing twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from nemo_sdg.errors import RowError
from nemo_sdg.records import CONTROL_PIECE, Message, Prompt, hash_of
from nemo_sdg.synthesis.brief import Brief
from nemo_sdg.synthesis.documents import Document
from nemo_sdg.synthesis.languages import Language
from nemo_sdg.synthesis.requirements import Requirement
from nemo_sdg.synthesis.templates import Slots, Template, Templates
from nemo_sdg.synthesis.text import folded

SPARE = 1.25
"""How many more items are asked for than prompts are wanted: some are double, some are refused."""


@dataclass(frozen=True)
class Item:
    """A prompt that is being made."""

    id: str
    """`<id of the item that it came from>.<number>`."""
    text: str = ""
    """What the last step gave: a topic, a question, a user's turn."""
    topic: str = ""
    turns: tuple[Message, ...] = ()
    """The conversation so far, up to an assistant's turn."""
    templates: tuple[str, ...] = ()
    """Digests of the templates that had a part in it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of it: document, keyword, persona, form."""
    checks: tuple[Requirement, ...] = ()
    """What a response to it must be, besides what the brief says."""

    def but(self, template: Template | None = None, **changes: Any) -> Item:
        """A copy with changes, which remembers the template that it was made with."""
        made = self.templates + ((template.digest,) if template else ())
        return dataclasses.replace(self, templates=made, **changes)

    def known(self, **facts: Any) -> Item:
        """A copy that knows more facts."""
        return self.but(facts={**self.facts, **facts})

    def said(self, *texts: str) -> Item:
        """A copy whose conversation has gone on by these turns, the user and the assistant in turn."""
        turns = self.turns
        for text in texts:
            role = "assistant" if turns and turns[-1]["role"] == "user" else "user"
            turns += ({"role": role, "content": text},)
        return self.but(turns=turns)


@dataclass(frozen=True)
class Ask:
    """One question to the generator, or an item that passes a step unasked."""

    item: Item
    messages: tuple[Message, ...] | None
    """None: the item passes on."""
    template: Template | None = None
    wanted: int = 1
    """Entries that a list was asked for."""


@dataclass(frozen=True)
class World:
    """What the steps of one kind work with; the same in every call."""

    kind: str
    brief: Brief
    language: Language
    templates: Templates
    wordings: Templates
    """Of the verifiable instructions."""
    count: int
    """Prompts that are wanted of this kind."""
    documents: Sequence[Document] = ()
    seeds: Sequence[str] = ()
    """Prompts of the user's own, as examples."""
    seed: int = 0
    round: int = 0
    per_ask: int = 5
    """Entries of one list."""
    topics: int = 0
    """Topics that the topics kind is to find."""
    turns: int = 3
    """User turns of a dialogue."""

    def draw(self, *names: object) -> random.Random:
        """Chance that depends on the seed, the round, the kind and these names alone."""
        text = "\x1f".join(map(str, (self.seed, self.round, self.kind, *names)))
        return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))

    def render(self, template: Template, **values: Any) -> str:
        return template.render({**self.brief.slots(), **values})

    def examples(self, *names: object) -> list[str]:
        """Up to three of the user's prompts, others for other names."""
        return self.draw("examples", *names).sample(list(self.seeds), min(3, len(self.seeds)))

    @cached_property
    def texts(self) -> dict[str, str]:
        """The documents by their ids."""
        return {document.id: document.text for document in self.documents}

    @property
    def asks(self) -> int:
        """Lists that are asked for, so that there are enough entries."""
        return math.ceil(self.count * SPARE / self.per_ask)


class Step(Protocol):
    """One round of questions."""

    name: str

    def ask(self, world: World, items: Sequence[Item]) -> Iterable[Ask]: ...

    def read(self, world: World, ask: Ask, answer: str) -> tuple[list[Item], Mapping[str, int]]:
        """The items in an answer, and what was left out of it, by reason."""


@dataclass(frozen=True)
class Kind:
    """A kind of prompts."""

    name: str
    """Also of its file in conf/prompts/."""
    steps: Callable[[World], Sequence[Step]]
    slots: Slots
    """Its templates, each with the names that it is given."""
    lists: tuple[str, ...] = ()
    begin: Callable[[World, Sequence[Item]], list[Item]] = lambda world, topics: list(topics)
    """What its first step starts from, given the topics."""
    finish: Callable[[World, Item], Item] = lambda world, item: item
    """What makes a whole of an item after the last step: the item whose text is the last user's turn."""
    needs: str = "topics"
    """topics, documents or nothing."""

    def load(self, folder: str, brief: Brief, language: Language) -> Templates:
        """Its texts. Raises ConfigError for a mistake in them."""
        values = brief.slots()
        return Templates.load(folder, self.name, language.code, self.slots, brief=values, lists=self.lists)


def cycled(world: World, items: Sequence[Item]) -> list[Item]:
    """As many items as are needed for single texts, over the given ones in turn. Each knows a task of the brief,
    another one when a topic comes up again."""
    tasks, made = world.brief.tasks or ("",), []
    for number in range(math.ceil(world.count * SPARE) if items else 0):
        item = items[number % len(items)]
        task = tasks[(number + number // len(items)) % len(tasks)]
        made.append(item.but(id=f"{item.id}.{number}").known(task=task))
    return made


def prompt_of(ask: Ask, name: str) -> Prompt:
    """The row that the generator is asked. Raises RowError where a text of the user's or a model's cannot be asked."""
    return Prompt.from_row({"id": name, "messages": list(ask.messages or ())}, name)


def gather(world: World, step: Step, asks: Sequence[Ask], answers: Sequence[str | None]) -> tuple[list[Item], Counter]:
    """The items of a step in the order of its questions, and what was left out, by reason. An answer that is None was
    not to be had. A text that differs from an earlier one in case, width or white space only is dropped."""
    items: list[Item] = []
    dropped: Counter[str] = Counter()
    seen: set[tuple] = set()
    for ask, answer in zip(asks, answers, strict=True):
        if ask.messages is None:
            found: list[Item] = [ask.item]
        elif answer is None or not answer.strip():
            dropped["no answer"] += 1
            continue
        elif CONTROL_PIECE.search(answer):
            dropped["control piece in an answer"] += 1
            continue
        else:
            found, left_out = step.read(world, ask, answer)
            dropped.update(left_out)
        for item in found:
            key = (item.facts.get("document"), hash_of(item.turns), folded(item.text))
            if key in seen:
                dropped["same as another"] += 1
            else:
                seen.add(key)
                items.append(item)
    return items, dropped


def finished(
    world: World, kind: Kind, items: Sequence[Item], checks: Sequence[Requirement]
) -> tuple[list[Prompt], Counter]:
    """The prompts of a kind, `world.count` at most, and what was left out, by reason.

    `extra` of a prompt says kind, topic, language, the digests of its templates, its facts, and the checks of the brief
    and of the item.
    """
    prompts: dict[str, Prompt] = {}
    dropped: Counter[str] = Counter()
    for item in items:
        if len(prompts) == world.count:
            dropped["more than were wanted"] += 1
            continue
        whole = kind.finish(world, item)
        turns = [*whole.turns, {"role": "user", "content": whole.text}]
        extra = {
            "kind": kind.name, "topic": whole.topic, "language": world.language.code,
            "templates": list(whole.templates), "facts": dict(whole.facts),
            "checks": [check.to_row() for check in (*checks, *whole.checks)],
        }  # fmt: skip
        try:
            prompt = Prompt.from_row({"id": f"{kind.name}-{hash_of(turns)}", "messages": turns, **extra})
        except RowError as error:
            dropped[error.what] += 1
            continue
        if prompt.id in prompts:
            dropped["same as another"] += 1
        else:
            prompts[prompt.id] = prompt
    return list(prompts.values()), dropped
