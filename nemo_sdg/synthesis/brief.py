"""The domain brief: what data is to be made, in the words of the one who needs it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from nemo_sdg.config import read_mapping
from nemo_sdg.config.briefs import BRIEF_FILES, beside
from nemo_sdg.errors import ConfigError
from nemo_sdg.synthesis.reading import field_of

_REQUIRED = ("field", "description", "language")
_NO_SLOTS = ("language", *BRIEF_FILES)


@dataclass(frozen=True, kw_only=True)
class Brief:
    """A field of work and how its data should be. Lists that are left out take the package's defaults."""

    field: str
    """What it is about, in a word or two: retail banking, ward nursing."""
    description: str
    """One or two sentences: who asks, who answers, in which setting."""
    language: str
    """Code of the language of prompts and responses, as in conf/prompts/languages.yaml."""
    tasks: tuple[str, ...] = ()
    """What people in the field want done."""
    terms: tuple[str, ...] = ()
    """Words of the field, also the pool of keywords for problems and instructions."""
    tone: str = ""
    """How a good answer sounds."""
    document_types: tuple[str, ...] = ()
    """What is written in the field; for writing tasks."""
    personas: tuple[str, ...] = ()
    """Who the users are; for dialogues."""
    topics: tuple[str, ...] = ()
    """Topics of the user's own, besides those that the model names."""
    must: tuple[str, ...] = ()
    """What holds of every response, one check a line."""
    must_not: tuple[str, ...] = ()
    """What holds of no response."""
    seeds: str | None = None
    """Prompt rows that show what real ones look like: .jsonl, relative to the brief's folder."""
    documents: str | None = None
    """Texts that questions are asked about: a .txt or .md file, a folder of them, or .jsonl rows with `text`."""

    @classmethod
    def load(cls, path: str) -> Brief:
        """The brief in a YAML file. Raises ConfigError: not UTF-8; a key is missing, empty, unknown or of another type."""
        block, known = read_mapping(path, "brief"), [field.name for field in fields(cls)]
        values = {key: field_of(block, key, _type(key), known, str(path)) for key in block}
        for key in _REQUIRED:
            if key not in values:
                raise ConfigError(f"{key} is missing", where=path, way_out=f"add {key}: ... to the brief")
        for key in BRIEF_FILES:
            if key in values:
                values[key] = beside(str(path), values[key])
        return cls(**values)

    @classmethod
    def none(cls, language: str = "") -> Brief:
        """In place of a brief, where there is none: its slots are there and empty."""
        return cls(field="", description="", language=language)

    def slots(self) -> dict[str, Any]:
        """What every template may use."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NO_SLOTS}


def _type(key: Any) -> type:
    return str if key in (*_REQUIRED, *BRIEF_FILES, "tone") else tuple
