"""The texts of conf/prompts/, rendered by jinja2 in its sandbox; a mistake in one is found before anything is asked.

A file holds the templates of one kind, each in every language:

    templates:
      questions:
        en: |
          Write {{ n }} questions about {{ topic }}.
        ja: |
          ...
    lists:
      levels: {en: [...], ja: [...]}

Where a list of texts stands in place of one text, one of them is drawn for each prompt. Templates include no others and
see the names that their kind supplies, and those of the brief.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Mapping, Sequence

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nemo_sdg.config import nearest, read_mapping
from nemo_sdg.errors import ConfigError
from nemo_sdg.synthesis.reading import texts

_JINJA = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
)
_JINJA.globals.clear()
_JINJA.filters.pop("random")
"""lipsum and random give another text each time; a template has the names that it is given."""
Slots = Mapping[str, Mapping[str, Any]]
"""Template name -> the names that it is given, each with an example of its value."""


@dataclass(frozen=True)
class Template:
    """One text with names in it."""

    where: str
    """File, name and language, for messages."""
    text: str
    digest: str
    """16 hex digits of the text: what rows say of it."""

    def render(self, values: Mapping[str, Any]) -> str:
        """The text with the values in it, white space at its ends taken off. Raises ConfigError if they do not fit."""
        try:
            return _compiled(self.text).render(values).strip()
        except Exception as error:  # whatever an expression in a template can raise
            found = f"{type(error).__name__}: {error}"
            raise ConfigError("the template cannot be rendered", where=self.where, found=found) from None


@dataclass(frozen=True)
class Templates:
    """The templates and lists of one file in one language."""

    templates: Mapping[str, tuple[Template, ...]]
    lists: Mapping[str, tuple[str, ...]]

    @classmethod
    def load(
        cls, folder: str, kind: str, language: str, slots: Slots, *, brief: Mapping[str, Any], lists: Sequence[str] = ()
    ) -> Templates:
        """What `<folder>/<kind>.yaml` has in a language.

        Args:
            slots: the templates that the kind has, each with the names that it supplies.
            brief: names and values that every template may use.
            lists: the lists that the kind reads.
        Raises:
            ConfigError: a template or list is missing, is not known, names something that it is not given, or cannot
                be rendered with example values. Names are checked by the syntax tree, in branches not taken too.
        """
        file = f"{folder}/{kind}.yaml"
        tree = read_mapping(file, "templates")
        _known(tree, ("templates", "lists"), file)
        found = _blocks(tree, "templates", slots, file, language)
        listed = _blocks(tree, "lists", lists, file, language)
        templates = {}
        for name, value in found.items():
            where = f"{file}, {name}.{language}"
            entries = texts(value if isinstance(value, list) else [value], where)
            templates[name] = tuple(checked(text, where, {**brief, **slots[name]}) for text in entries)
        return cls(templates, {name: texts(value, f"{file}, {name}.{language}") for name, value in listed.items()})

    def __getitem__(self, name: str) -> Template:
        """The template of a name, the first where there are several."""
        return self.templates[name][0]

    def draw(self, name: str, chance: random.Random) -> Template:
        """One of the texts of a name."""
        return chance.choice(self.templates[name])


def _blocks(tree: dict, part: str, wanted: Any, file: str, language: str) -> dict[str, Any]:
    """Name -> what stands there for the language, for exactly the names that are wanted."""
    blocks = tree.get(part) or {}
    _known(blocks, wanted, f"{file}, {part}")
    for name in wanted:
        if not isinstance(blocks.get(name), dict) or language not in blocks[name]:
            found = ", ".join(map(str, blocks[name])) if isinstance(blocks.get(name), dict) else None
            way_out = f"add {name} with a text under {language}"
            raise ConfigError(f"{name}.{language} is missing", where=f"{file}, {part}", found=found, way_out=way_out)
    return {name: blocks[name][language] for name in wanted}


def _known(block: Any, names: Any, where: str) -> None:
    if not isinstance(block, dict):
        raise ConfigError("not a mapping", where=where, found=type(block).__name__, expected="key: value")
    for key in block:
        if key not in names:
            way_out = f"the nearest valid key is {nearest(str(key), names)}" if names else "take it out"
            raise ConfigError(f"unknown key {key!r}", where=where, way_out=way_out)


def checked(text: str, where: str, values: Mapping[str, Any]) -> Template:
    """A checked template.

    Args:
        values: the names that it may use, each with an example of its value.
    Raises:
        ConfigError: it cannot be read, uses another name, or cannot be rendered with the examples.
    """
    try:
        tree = _JINJA.parse(text)
        _compiled(text)
    except jinja2.TemplateSyntaxError as error:
        found = f"{error.message} in line {error.lineno}"
        raise ConfigError("the template cannot be read", where=where, found=found) from None
    if list(jinja2.meta.find_referenced_templates(tree)):
        raise ConfigError("the template takes in another file", where=where, way_out="write the text itself")
    for name in sorted(jinja2.meta.find_undeclared_variables(tree)):
        if name not in values:
            raise ConfigError(
                f"the template has an unknown name {name!r}", where=where,
                expected="one of " + ", ".join(sorted(values)), way_out=f"the nearest is {nearest(name, values)}",
            )  # fmt: skip
    made = Template(where, text, hashlib.sha256(text.encode()).hexdigest()[:16])
    if not made.render(values):
        raise ConfigError("the template renders to nothing", where=where, found=repr(text[:40]))
    return made


@lru_cache(maxsize=1024)
def _compiled(text: str) -> jinja2.Template:
    return _JINJA.from_string(text)
