"""What each setting means, in the words that stand below its field."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from functools import cache
from typing import Any, Iterator, get_type_hints

from nemo_sdg.config.settings import RunConfig


def meanings(kind: Any = RunConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, meaning) of every setting, in the order of the file; a setting of names with numbers is one key."""
    hints, said = get_type_hints(kind), _said(kind)
    for field in dataclasses.fields(kind):
        declared = hints[field.name]
        if dataclasses.is_dataclass(declared):
            yield from meanings(declared, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", said.get(field.name, "")


@cache
def _said(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass and of those that it builds on."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(one):
            continue
        tree = ast.parse(inspect.getsource(sys.modules[one.__module__]))
        (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == one.__name__)
        for field, below in zip(body, body[1:]):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[field.target.id] = " ".join(text.value.split())
    return found
