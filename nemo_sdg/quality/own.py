"""A researcher's own rule: a function of one scored row that says keep or drop.

    def no_apologies(row: Scored, context: Context) -> Keep | Drop:
        return Drop("an apology") if row.response.startswith("Sorry") else Keep()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Union

from nemo_sdg.config import Select
from nemo_sdg.errors import UserError
from nemo_sdg.records import Scored


@dataclass(frozen=True)
class Keep:
    """The rule has nothing against the row."""


@dataclass(frozen=True)
class Drop:
    """The row is not wanted."""

    reason: str
    """A short text, the same for all rows that go for the same reason: rows are counted by it."""


@dataclass(frozen=True)
class Context:
    """What a rule may know besides the row."""

    settings: Select
    scalar: float
    """The weighted scalar of the row's scores."""


Rule = Callable[[Scored, Context], Union[Keep, Drop]]


def first_reason(rules: Iterable[Rule], row: Scored, context: Context) -> str | None:
    """The reason of the first rule that drops the row. Raises UserError for a rule that fails or says anything else."""
    for rule in rules:
        name = getattr(rule, "__name__", type(rule).__name__)
        try:
            said = rule(row, context)
        except Exception as error:
            raise UserError(
                f"the rule {name} failed", where=f"row {row.id}", found=f"{type(error).__name__}: {error}"
            ) from error
        if isinstance(said, Drop) and isinstance(said.reason, str) and said.reason.strip():
            return said.reason
        if not isinstance(said, Keep):
            raise UserError(
                f"the rule {name} says neither Keep() nor Drop(reason)", where=f"row {row.id}", found=repr(said)
            )
    return None
