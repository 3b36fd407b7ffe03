"""Dialogues to learn from, in the shapes that people have them in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from nemo_sdg.errors import RowError
from nemo_sdg.records import fields
from nemo_sdg.records.fields import Message


@dataclass(frozen=True)
class Dialogue:
    """A conversation that ends with the assistant's turn."""

    id: str
    messages: tuple[Message, ...]
    """All turns but the last one."""
    response: str
    extra: dict[str, Any] = field(default_factory=dict)

    unique: ClassVar[bool] = False

    @classmethod
    def from_row(cls, row: dict, where: str = "row") -> Dialogue:
        """`{"messages"}`, `{"prompt", "response"}`, or NeMo's `{"system", "conversations": [{"from", "value"}]}`."""
        said = fields.answer(_as_messages(row, where), where)
        columns = fields.extra(row, "id", "messages", "prompt", "response", "system", "mask", "type", "conversations")
        return cls(said["id"], said["messages"], said["response"], columns)


def _as_messages(row: dict, where: str) -> dict:
    turns = row.get("conversations")
    if turns is None:
        return row
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("conversations is not a list of turns", where=where, found=type(turns).__name__)
    if row.get("mask", "User") != "User" or row.get("type") is not None:
        found = f"mask {row.get('mask')!r}, type {row.get('type')!r}"
        raise RowError("the row wants another loss mask", where=where, found=found, expected="mask 'User', type null")
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    said = [{"role": str(turn.get("from")).lower(), "content": turn.get("value")} for turn in turns]
    return {**({"id": row["id"]} if "id" in row else {}), "messages": [*system, *said]}
