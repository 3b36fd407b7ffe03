"""Settings of what stays on the disk when a round is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

Rule = tuple[str, Callable[[Any], bool]]
MODELS = ("all", "last")


@dataclass(kw_only=True)
class Keep:
    """Rows, datasets and evaluations always stay: they say where each row comes from. So does what the run still needs."""

    models: str = "all"
    """Whose weights stay: all, or last (of a policy or reward model that later rounds have trained further, the weights are
    deleted when a round that goes on from the later one is not in need of them any more)."""
    intermediate: bool = True
    """The weights of what lies between a start and the policy (sft/, preference-1/) stay when their round is evaluated."""


RULES: dict[str, Rule] = {"keep.models": ("one of " + ", ".join(MODELS), lambda x: x in MODELS)}
