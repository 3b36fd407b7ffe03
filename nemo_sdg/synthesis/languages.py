"""What the package knows of a language: conf/prompts/languages.yaml, one block per language."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

from nemo_sdg.config import nearest, read_mapping
from nemo_sdg.errors import ConfigError
from nemo_sdg.synthesis.reading import field_of

FILE = "languages.yaml"


@dataclass(frozen=True, kw_only=True)
class Language:
    """One language that prompts can be made in."""

    code: str
    """As briefs and templates name it: en, ja, ..."""
    name: str
    """In the language itself."""
    aliases: tuple[str, ...] = ()
    """What a brief may also call it."""
    cased: bool
    """Whether letters have an upper and a lower case."""
    scripts: tuple[str, ...]
    """First words of the Unicode names of its letters: LATIN, or HIRAGANA, KATAKANA, CJK."""
    share: float
    """Smallest share of a text's letters in these scripts."""
    marks: tuple[str, ...] = ()
    """Scripts of which a text has at least one letter: kana tell Japanese from Chinese."""
    common: tuple[str, ...] = ()
    """Frequent short words: they tell languages of one script apart."""
    positive: tuple[str, ...]
    """How an answer to a yes/no question begins that says yes."""
    negative: tuple[str, ...]
    openers: tuple[str, ...]
    """Beginnings of sentences that are mere politeness, as a model writes in a user's place."""
    exclamations: tuple[str, ...] = ()
    """Openers that are such only when they stand alone, before a comma or a full stop: great, なるほど."""
    connectives: tuple[str, ...] = ()
    """Words that join an opener to what the user means."""
    labels: tuple[str, ...] = ()
    """What a model may write before a text that it was asked for, with a colon."""
    prefaces: tuple[str, ...] = ()
    """How a line begins that announces the text below it."""
    letters: tuple[str, ...] = ()
    """Letters whose number an instruction may ask for."""

    @classmethod
    def load(cls, folder: str, code: str) -> Language:
        """The block of a language. Raises ConfigError for one that is not there, or a key that is wrong."""
        file = f"{folder}/{FILE}"
        blocks = read_mapping(file, "languages")
        if code not in blocks:
            raise ConfigError(
                "there are no texts for this language", where=file, found=code, expected="one of " + ", ".join(blocks),
                way_out=f"add a block {code}, or take the nearest, {nearest(code, blocks)}",
            )  # fmt: skip
        return cls(code=code, **_checked(blocks[code], f"{file}, {code}"))


    @classmethod
    def all(cls, folder: str) -> dict[str, Language]:
        """Every language of the file by its code, in its order. Raises ConfigError for a key that is wrong."""
        file = f"{folder}/{FILE}"
        blocks = read_mapping(file, "languages")
        return {code: cls(code=code, **_checked(block, f"{file}, {code}")) for code, block in blocks.items()}


_TYPES = {"name": str, "cased": bool, "share": float}


def _checked(block: Any, where: str) -> dict[str, Any]:
    if not isinstance(block, dict):
        raise ConfigError("a language is a block of keys", where=where, found=type(block).__name__)
    known = {field.name: field for field in fields(Language)[1:]}  # the code is the block's own name
    values = {key: field_of(block, key, _TYPES.get(key, tuple), known, where) for key in block}
    absent = [key for key, field in known.items() if key not in values and field.default is MISSING]
    if absent:
        raise ConfigError(f"{absent[0]} is missing", where=where)
    if not 0 <= values["share"] <= 1:
        raise ConfigError("the share is out of range", where=where, found=values["share"], expected="0 to 1")
    return values
