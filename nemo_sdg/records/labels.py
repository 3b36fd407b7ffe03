"""Rows that people labelled, where they have labels of their own beside the five attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemo_sdg.config.selection import ATTRIBUTES, MISSING
from nemo_sdg.records import fields
from nemo_sdg.records.rows import Labelled


@dataclass(frozen=True)
class OwnLabels:
    """Reads rows of HelpSteer2's schema with more columns that are labels, on scales of their own.

    A row that has one of these may lack any of the five attributes; one that has none is held to HelpSteer2's rules.
    """

    own: tuple[str, ...]
    unique = Labelled.unique

    def from_row(self, row: dict[str, Any], where: str = "row") -> Labelled:
        said = {name: fields.own_label(row, name, where) for name in self.own}
        if all(label == MISSING for label in said.values()):
            return _without(Labelled.from_row(row, where), said)
        present = {name: fields.label(row, name, where) for name in ATTRIBUTES if row.get(name) is not None}
        # The rest of the row is read as HelpSteer2's, with labels in the place of those that nobody gave.
        read = Labelled.from_row({**row, **{name: 0 for name in ATTRIBUTES if name not in present}}, where)
        labels = {name: present.get(name, MISSING) for name in ATTRIBUTES}
        return _without(replace(read, labels={**labels, **said}), said)


def _without(row: Labelled, own: dict[str, float]) -> Labelled:
    return replace(row, labels={**row.labels, **own}, extra=fields.extra(row.extra, *own))


def labelled(own: Sequence[str]) -> type[Labelled] | OwnLabels:
    """The kind of row to read labelled files with, for `read_rows` and `each_row`."""
    return OwnLabels(tuple(own)) if own else Labelled
