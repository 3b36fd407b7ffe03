"""Values out of a server's answer, by their path: what is absent or of another kind is told, never guessed."""

from __future__ import annotations

import math
from typing import Any

from nemo_sdg.errors import RowError

_KINDS = {str: "a text", list: "a list", dict: "an object", int: "a whole number", float: "a number"}


def take(answer: Any, *path: str | int, kind: type) -> Any:
    """The value at a path like ("choices", 0, "finish_reason").

    Raises:
        RowError: naming the field that is missing or of another kind, and what stands there instead.
    """
    name, value = "", answer
    for step in path:
        holder, parent = name or "the answer", value
        name += f"[{step}]" if isinstance(step, int) else f".{step}" if name else step
        try:
            value = parent[step]
        except (KeyError, IndexError, TypeError):
            found = f"{holder} is {seen(parent)}"
            raise RowError(f"the server's answer has no {name}", found=found, expected=_KINDS[kind]) from None
    if kind is float and type(value) in (int, float):
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if type(value) is not kind:
        raise RowError(f"the server's answer has no {name} of the right kind", found=seen(value), expected=_KINDS[kind])
    return value


def seen(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, dict):
        return "an object with " + (", ".join(map(str, value)) or "no keys")[:120]
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "null" if value is None else repr(value)[:80]
