"""All that a prompt got, together: its answers, their revisions, and what other generators said.

These lie in parts of a round that follow one another, so they are counted first, and then a prompt's rows are held from
its first to its last one, and no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Generic, TypeVar

Row = TypeVar("Row")


class Joined(Generic[Row]):
    """Give it the key of every row that will come, then the rows.

    Holds one number for each key, and the rows whose key still comes.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._missing = Counter(keys)
        self._held: dict[str, list[Row]] = {}

    def __len__(self) -> int:
        """Rows that are held now."""
        return sum(map(len, self._held.values()))

    def add(self, key: str, row: Row) -> list[Row] | None:
        """All rows of this key in the order in which they came, with the last of them; None while some are missing."""
        self._held.setdefault(key, []).append(row)
        self._missing[key] -= 1
        if self._missing[key]:
            return None
        del self._missing[key]
        return self._held.pop(key)
