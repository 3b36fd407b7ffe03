"""Everything that prompts are made from, read and checked before anything is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemo_sdg.config import Synthesis, fingerprint
from nemo_sdg.errors import ConfigError
from nemo_sdg.records import Fault, Prompt, read_rows, why_none
from nemo_sdg.synthesis.brief import Brief
from nemo_sdg.synthesis.documents import Document, in_pieces, read_documents
from nemo_sdg.synthesis.instructions import load_wordings
from nemo_sdg.synthesis.kinds import KINDS, TOPICS, Kind, World, with_own
from nemo_sdg.synthesis.kinds.bounds import most_questions
from nemo_sdg.synthesis.languages import Language
from nemo_sdg.synthesis.requirements import Questions, Requirement, requirements
from nemo_sdg.synthesis.templates import Templates


@dataclass(frozen=True)
class Plan:
    """What is to be made in a round."""

    topics: World
    worlds: tuple[tuple[Kind, World], ...]
    """The kinds that are wanted, in the order of PROMPT_KINDS."""
    checks: tuple[Requirement, ...]
    """What holds of every response."""
    faults: tuple[Fault, ...]
    """Documents and seeds that were set aside."""

    @classmethod
    def load(cls, settings: Synthesis, *, seed: int, round: int) -> Plan:
        """Reads the brief and all that it names. Raises UserError for the first thing that is wrong."""
        assert settings.brief is not None, "there is a brief to plan for"
        brief = Brief.load(settings.brief)
        language = Language.load(settings.templates, brief.language)
        wanted = [KINDS[name] for name in KINDS if name in settings.kinds]
        _enough(settings, brief, wanted)
        Questions(settings.templates, brief, language)  # asked much later, and checked now
        documents, faults = read_documents(brief.documents) if brief.documents else ([], [])
        if settings.piece_words is not None:
            documents = in_pieces(documents, settings.piece_words)
        seeds, more = _seeds(brief)
        shared: dict[str, Any] = {
            "brief": brief, "language": language, "wordings": load_wordings(settings.templates, language.code),
            "documents": tuple(documents), "seeds": seeds, "seed": seed, "round": round, "per_ask": settings.per_ask,
            "turns": settings.turns,
        }  # fmt: skip

        def world(kind: Kind, count: int, topics: int = 0) -> World:
            texts = kind.load(settings.templates, brief, language)
            return World(kind=kind.name, templates=texts, count=count, topics=topics, **shared)

        needed = any(kind.needs == "topics" for kind in wanted)
        topics = world(TOPICS, 0, settings.topics if needed else 0)
        worlds = tuple((kind, world(kind, int(settings.kinds[kind.name]))) for kind in wanted)
        return cls(topics, worlds, tuple(requirements(brief, language)), (*faults, *more))

    def questions(self) -> int:
        """Questions that the policy is asked at most until the prompts are there."""
        asked, found = most_questions(TOPICS, self.topics, [])
        topics = with_own(self.topics, found)
        return asked + sum(most_questions(kind, world, topics)[0] for kind, world in self.worlds)

    def identity(self) -> str:
        """16 hex digits that name all texts, documents, seeds and numbers of the plan."""
        worlds = [self.topics, *(world for _, world in self.worlds)]
        return fingerprint([_plain(world) for world in worlds] + [_document(d) for d in self.topics.documents])


def _enough(settings: Synthesis, brief: Brief, wanted: Sequence[Kind]) -> None:
    for kind in wanted:
        if kind.needs == "documents" and brief.documents is None:
            way_out = f"add documents: PATH to the brief, or take {kind.name} out of data.synthesis.kinds"
            raise ConfigError(f"{kind.name} asks about documents", where=settings.brief, found="none", way_out=way_out)
        if kind.needs == "topics" and not settings.topics and not brief.topics:
            way_out = "add topics to the brief, or set data.synthesis.topics to 1 or more"
            raise ConfigError(f"{kind.name} asks about topics", where=settings.brief, found="none", way_out=way_out)


def _seeds(brief: Brief) -> tuple[tuple[str, ...], list[Fault]]:
    """The last turns of the user's own prompts."""
    if brief.seeds is None:
        return (), []
    rows, faults = read_rows(brief.seeds, Prompt)
    if not rows:
        expected = "rows with 'prompt' or 'messages'"
        raise ConfigError("no seed can be used", where=brief.seeds, found=why_none(faults), expected=expected)
    return tuple(dict.fromkeys(row.messages[-1]["content"] for row in rows)), faults


def _plain(world: World) -> dict[str, Any]:
    values = {f.name: getattr(world, f.name) for f in dataclasses.fields(world) if f.name != "documents"}
    texts = {name: _texts(values[name]) for name in ("templates", "wordings")}
    return {**values, **texts, "brief": dataclasses.asdict(world.brief), "language": dataclasses.asdict(world.language)}


def _texts(templates: Templates) -> list[Any]:
    return [{name: [one.digest for one in texts] for name, texts in templates.templates.items()}, dict(templates.lists)]


def _document(document: Document) -> dict[str, str]:
    return {"id": document.id, "text": document.text, **({"of": document.of} if document.of else {})}
