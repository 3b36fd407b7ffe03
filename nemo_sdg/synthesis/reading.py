"""The fields of a YAML block, each held to its type; a key that is not known is refused with the nearest."""

from __future__ import annotations

from typing import Any, Iterable, Mapping

from nemo_sdg.config import nearest
from nemo_sdg.errors import ConfigError


def field_of(block: Mapping[Any, Any], key: Any, kind: type, known: Iterable[str], where: str) -> Any:
    """The value of a key: text, true or false, a number, or (tuple) a list of texts that has one at least.

    Raises ConfigError naming the key, what was found and what is expected.
    """
    known = list(known)
    if key not in known:
        way_out = f"the nearest valid key is {nearest(str(key), known)}"
        raise ConfigError(f"unknown key {key!r}", where=where, way_out=way_out)
    value = block[key]
    if kind is tuple:
        return texts(value, f"{where}, {key}")
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind is not float and type(value) is kind and (kind is not str or value.strip()):
        return value
    expected = {str: "text", bool: "true or false", float: "a number"}[kind]
    raise ConfigError(f"{key} has the wrong type", where=where, found=repr(value), expected=expected)


def texts(value: Any, where: str) -> tuple[str, ...]:
    """A list of texts, none of them empty or twice. Raises ConfigError."""
    if value == [] or value is None:
        way_out = "write an entry, or leave the key out"
        raise ConfigError("the list is empty", where=where, expected="at least one text", way_out=way_out)
    if not isinstance(value, list):
        raise ConfigError("not a list", where=where, found=repr(value), expected="a list of texts")
    for number, entry in enumerate(value, start=1):
        if not isinstance(entry, str) or not entry.strip():
            raise ConfigError(f"entry {number} is no text", where=where, found=repr(entry), expected="text in quotes")
    twice = [entry for entry in value if value.count(entry) > 1]
    if twice:
        raise ConfigError("an entry stands twice", where=where, found=repr(twice[0]))
    return tuple(value)
