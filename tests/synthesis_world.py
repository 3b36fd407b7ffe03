"""A generator that is a program, and one kind run with it from beginning to end."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from nemo_sdg.records import Prompt
from nemo_sdg.synthesis.brief import Brief
from nemo_sdg.synthesis.documents import Document
from nemo_sdg.synthesis.instructions import load_wordings
from nemo_sdg.synthesis.kinds import KINDS, TOPICS, Item, Kind, World, finished, gather, prompt_of
from nemo_sdg.synthesis.languages import Language
from nemo_sdg.synthesis.requirements import requirements

FOLDER = "package:conf/prompts"
BRIEFS = {"en": "package:conf/briefs/finance.yaml", "ja": "package:conf/briefs/manufacturing_ja.yaml"}
LISTED = {"en": "numbered list", "ja": "番号付きリスト"}
CLASSIFIED = {"en": "Say Yes or No first", "ja": "最初に「はい」か「いいえ」"}


WORDINGS = lru_cache(load_wordings)
TEXTS = lru_cache(lambda name, language: (TOPICS if name == "topics" else KINDS[name]).load(FOLDER, *GIVEN(language)))
GIVEN = lru_cache(lambda language: (Brief.load(BRIEFS[language]), Language.load(FOLDER, language)))
"""Reading YAML takes longer than all else here."""


def name_of(messages: Any) -> str:
    return hashlib.sha256(repr([dict(m) for m in messages]).encode()).hexdigest()[:8]


def reply(messages: Any) -> str:
    """What the program answers: a list of seven where one is asked for, yes or no by chance, else a sentence or two."""
    text, name = messages[-1]["content"], name_of(messages)
    language = "ja" if any("ぁ" <= c <= "ん" for c in text) else "en"
    if CLASSIFIED[language] in text:
        return "Yes, it could." if int(name, 16) % 2 else "No."
    if LISTED[language] in text:
        entry = "Matter {} of {}" if language == "en" else "事柄{}の{}"
        return "Here:\n\n" + "\n".join(f"{n}. {entry.format(n, name)}" for n in range(1, 8))
    return f"Thanks! What about the case {name}?" if language == "en" else f"ありがとうございます。{name}の場合はどうですか。"


def world(kind: Kind, language: str = "en", count: int = 12, **more: Any) -> World:
    brief, told = GIVEN(language)
    brief = more.pop("brief", brief)
    documents = [Document(f"d{n}", f"{'Text' if language == 'en' else '文書'} {n}.") for n in range(3)]
    given = {"documents": documents, "topics": 6, **more}
    return World(kind.name, brief, told, TEXTS(kind.name, language), WORDINGS(FOLDER, language), count, **given)


def items_of(kind: Kind, where: World, topics: list[Item], answer: Callable = reply) -> tuple[list[Item], Counter, int]:
    """What the kind's steps make; what was left out; how much was asked."""
    items, dropped, asked = kind.begin(where, topics), Counter(), 0
    for step in kind.steps(where):
        asks = list(step.ask(where, items))
        prompts = [prompt_of(ask, f"{step.name}/{n}") if ask.messages else None for n, ask in enumerate(asks)]
        answers = [answer(prompt.messages) if prompt else None for prompt in prompts]
        items, left_out = gather(where, step, asks, answers)
        dropped, asked = dropped + left_out, asked + sum(prompt is not None for prompt in prompts)
    return items, dropped, asked


def topics_of(language: str = "en") -> list[Item]:
    return items_of(TOPICS, world(TOPICS, language), [])[0]


def made(name: str, language: str = "en", answer: Callable = reply, **more: Any) -> tuple[list[Prompt], Counter]:
    """The prompts of a kind, and what was left out."""
    kind = KINDS[name]
    where = world(kind, language, **more)
    items, dropped, _ = items_of(kind, where, topics_of(language), answer)
    prompts, left_out = finished(where, kind, items, requirements(where.brief, where.language))
    return prompts, dropped + left_out
