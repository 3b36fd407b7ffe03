"""A recipe that brings rules of its own: settings stay plain data; the rules beside them are named by their source."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_sdg.config.settings import RunConfig
from nemo_sdg.config.values import fingerprint
from nemo_sdg.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """What a recipe function may return in place of a RunConfig."""

    config: RunConfig
    rules: tuple[Callable, ...] = ()
    """Rules of selection (`nemo_sdg.quality.Rule`), asked in this order."""


def rule_digests(rules: Sequence[Callable]) -> dict[str, str]:
    """By name, 16 hex digits for what a rule does: its source, and that of the functions and values that it uses.

    Of what other modules define the name counts. Raises ConfigError for a rule that has no Python source, for two of
    one name, and for one that uses a value which cannot be written down.
    """
    named: dict[str, str] = {}
    for rule in rules:
        name = getattr(rule, "__name__", type(rule).__name__)
        if name in named:
            raise ConfigError("two rules have one name", where=f"rule {name}", way_out="give each a name of its own")
        named[name] = fingerprint(_described(rule, name, []))
    return named


def _described(value: Any, rule: str, above: list[Any]) -> Any:
    """A value as JSON that differs when the value does something else."""
    if isinstance(value, types.ModuleType):
        return value.__name__
    if any(value is other for other in above):
        return "itself"
    above = [*above, value]
    if isinstance(value, types.FunctionType):
        if len(above) > 1 and value.__module__ != getattr(above[0], "__module__", None):
            return f"{value.__module__}.{value.__qualname__}"
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()]
        used = {name: _described(one, rule, above) for name, one in sorted(_used(value).items())}
        return [_source(value, rule), used, [_described(one, rule, above) for one in defaults]]
    if isinstance(value, type) or isinstance(value, types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, re.Pattern):
        return repr(value)
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(_described(one, rule, above)) for one in value)
    if isinstance(value, (list, tuple)):
        return [_described(one, rule, above) for one in value]
    if isinstance(value, dict):
        return [[_described(key, rule, above), _described(one, rule, above)] for key, one in value.items()]
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(getattr(type(value), "__call__", None), types.FunctionType):  # an object that is called
        call = type(value).__call__
        return [_described(call, rule, []), _described(vars(value), rule, above)]
    raise ConfigError(
        "the rule uses a value that cannot be written down", where=f"rule {rule}", found=type(value).__name__,
        way_out="use functions, numbers, texts, patterns, and lists, sets and mappings of these",
    )  # fmt: skip


def _used(function: types.FunctionType) -> dict[str, Any]:
    """The globals that a function or a function within it names, and what it took from the one around it."""
    names, bodies = set(), [function.__code__]
    while bodies:
        body = bodies.pop()
        names.update(body.co_names)
        bodies += [constant for constant in body.co_consts if isinstance(constant, types.CodeType)]
    taken = zip(function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__ or ()))
    return {**{name: function.__globals__[name] for name in names if name in function.__globals__}, **dict(taken)}


def _source(function: Callable, rule: str) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        raise ConfigError(
            "the rule has no Python source", where=f"rule {rule}", way_out="define it as a function in the recipe"
        ) from None
