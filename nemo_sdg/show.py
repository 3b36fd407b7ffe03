"""`show`: the recipes that there are, or every setting of one: its value, where that is from, and what it means."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from nemo_sdg import resources
from nemo_sdg.config import RunConfig, flatten, load, nearest, override
from nemo_sdg.config.meanings import meanings
from nemo_sdg.console import Console
from nemo_sdg.errors import ConfigError

_WIDTH = 100


def recipes(console: Console) -> None:
    """Lists the recipes that come with the package, each with the first sentence of what it says of itself."""
    rows = [(name, _about(path.read_text(encoding="utf-8"))) for name, path in resources.recipes().items()]
    console.table("recipes", ["name", "what it is"], rows)
    console.say("nemo-sdg show NAME lists every setting of one, also of a .py or .yaml file of your own")


def settings(console: Console, recipe: str, words: Sequence[str], other: str | None) -> None:
    """Lists the settings of a recipe.

    Args:
        words: `key=value`, and beginnings of keys; only keys that begin so are listed, where there are any.
        other: another recipe; only what differs from it is listed.
    Raises:
        ConfigError: a recipe, a key or a beginning of keys that does not exist.
    """
    given, wanted = [word for word in words if "=" in word], tuple(word for word in words if "=" not in word)
    base = load(recipe)
    now, before, default = (flatten(config) for config in (override(base, given), base, RunConfig()))
    told = dict(meanings())
    for beginning in wanted:
        if not any(key.startswith(beginning) for key in now):
            raise ConfigError(
                "no setting begins like this", where="command line", found=beginning, expected="the beginning of a key",
                way_out=f"the nearest is {nearest(beginning, {*now, *(key.rpartition('.')[0] for key in now)})}",
            )  # fmt: skip
    theirs = None if other is None else flatten(load(other))
    for key in dict.fromkeys([*now, *(theirs or ())]):
        if wanted and not key.startswith(wanted):
            continue
        if theirs is None:
            aside = _from(now[key], before.get(key, _UNSET), default.get(key, _UNSET))
        elif now.get(key, _UNSET) != theirs.get(key, _UNSET):
            aside = f"{other}: {_text(theirs.get(key, _UNSET))}"
        else:
            continue
        for line in _lines(key, now.get(key, _UNSET), aside, _meaning(told, key)):
            console.say(line)


_UNSET = object()


def _from(now: Any, before: Any, default: Any) -> str:
    """Where a value is from, and what it would be without that."""
    if now == default:
        return ""
    where = "recipe" if now == before else "command line"
    return f"{where}; default {_text(default)}" if default is not _UNSET else where


def _lines(key: str, value: Any, aside: str, meaning: str) -> Iterator[str]:
    yield f"{key} = {_text(value)}" + (f"   ({aside})" if aside else "")
    yield from textwrap.wrap(meaning, _WIDTH, initial_indent="    ", subsequent_indent="    ")


def _meaning(told: dict[str, str], key: str) -> str:
    """Of an entry of names with numbers, what the whole means."""
    while key not in told and "." in key:
        key = key.rpartition(".")[0]
    return told.get(key, "")


def _text(value: Any) -> str:
    """As it is typed."""
    if value is _UNSET:
        return "not set"
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def _about(source: str) -> str:
    """The first sentence at the top of a recipe."""
    return " ".join((ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].split())
