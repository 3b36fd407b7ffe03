"""The rows that cross a stage.

Prompt -> Response -> Scored -> Decision, each with the fields of the one before; Labelled is a row that people
scored (HelpSteer2). Columns that we do not know are kept in `extra` and written again.

A row is checked by `from_row` and then believed everywhere: `believed` takes one of a sealed part as it stands. JSON has
no NaN, so a score that is not finite is NaN in memory and null in a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nemo_sdg.config.selection import ATTRIBUTES
from nemo_sdg.errors import RowError
from nemo_sdg.records import fields
from nemo_sdg.records.fields import RESPONSE_COLUMNS, Message

_ANSWER = tuple(name for name in RESPONSE_COLUMNS if name != "prompt")


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for an answer: an optional system text, then turns, the last one the user's."""

    id: str
    """Unique in its file; by default a hash of the messages."""
    messages: tuple[Message, ...]
    """{"role": system | user | assistant, "content": text} in order."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Columns that pass through."""

    unique: ClassVar[bool] = True

    @classmethod
    def from_row(cls, row: dict, where: str = "row") -> Prompt:
        messages = fields.conversation(row, where)
        if messages[-1]["role"] != "user":
            raise RowError("the last turn is not the user's", where=where, found=messages[-1]["role"])
        name = fields.row_id(row, lambda: fields.hash_of(messages), where)
        return cls(name, messages, fields.extra(row, "id", "messages", "prompt"))

    def to_row(self) -> dict:
        return fields.with_extra({"id": self.id, "messages": list(self.messages)}, self.extra)


@dataclass(frozen=True)
class Response:
    """One answer to a prompt."""

    id: str
    """`<prompt id>#<sample>`."""
    prompt_id: str
    sample: int
    """Which of the prompt's answers, from 0."""
    messages: tuple[Message, ...]
    """The prompt's conversation, without the answer."""
    response: str
    """The answer's text, without the end-of-turn piece."""
    response_token_ids: tuple[int, ...] = ()
    """What the model emitted, without the piece that stopped it; empty where only the text is known."""
    finish_reason: str = "stop"
    """stop (the model ended its turn), length (max_tokens reached) or context (no room left)."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What made this row: model digest, template, seed, round."""
    extra: dict[str, Any] = field(default_factory=dict)

    unique: ClassVar[bool] = True

    @classmethod
    def from_row(cls, row: dict, where: str = "row") -> Response:
        return cls(**fields.answer(row, where), extra=fields.extra(row, *RESPONSE_COLUMNS))

    def to_row(self) -> dict:
        row = {
            "id": self.id,
            "prompt_id": self.prompt_id,
            "sample": self.sample,
            "messages": list(self.messages),
            "response": self.response,
            "response_token_ids": list(self.response_token_ids),
            "finish_reason": self.finish_reason,
            "provenance": self.provenance,
        }
        return fields.with_extra(row, self.extra)


@dataclass(frozen=True, kw_only=True)
class Scored(Response):
    """An answer with its scores. `Scored(**vars(response), scores=...)` makes one."""

    scores: dict[str, float]
    """One number per attribute, as the model gave it (neither clamped nor rounded), and for each other label that it has
    learned; NaN when it was not finite."""

    @classmethod
    def from_row(cls, row: dict, where: str = "row") -> Scored:
        columns = fields.extra(row, "scores", *RESPONSE_COLUMNS)
        return cls(**fields.answer(row, where), scores=fields.scores(row, where), extra=columns)

    @classmethod
    def believed(cls, row: dict) -> Scored:
        """The row of which `to_row` has made this mapping, which is taken over: what is left in it becomes `extra`.

        Only for what a store has read from a part and found to be what it was sealed as: nothing is looked at again.
        """
        return cls(**_believed(row), extra=row)

    def to_row(self) -> dict:
        scores = {name: fields.shortest_float32(score) for name, score in fields.all_attributes(self.scores).items()}
        return {**super().to_row(), "scores": scores}


@dataclass(frozen=True, kw_only=True)
class Decision(Scored):
    """A scored answer that was kept or dropped. `Decision(**vars(scored), kept=..., reason=..., scalar=...)`."""

    kept: bool
    reason: str | None
    """Why it was dropped; None for a row that was kept."""
    scalar: float
    """Weighted sum of the scores; NaN when a score was not finite."""

    @classmethod
    def from_row(cls, row: dict, where: str = "row") -> Decision:
        kept, reason, scalar = row.get("kept"), row.get("reason"), row.get("scalar")
        if not isinstance(kept, bool) or kept != (reason is None):
            found = f"kept {kept}, reason {reason}"
            raise RowError("a decision keeps a row or gives a reason", where=where, found=found)
        return cls(
            **fields.answer(row, where),
            scores=fields.scores(row, where),
            kept=kept,
            reason=reason,
            scalar=math.nan if scalar is None else fields.number(scalar, "scalar", where),
            extra=fields.extra(row, "scores", "kept", "reason", "scalar", *RESPONSE_COLUMNS),
        )

    @classmethod
    def believed(cls, row: dict) -> Decision:
        """As `Scored.believed`."""
        kept, reason, scalar = row.pop("kept"), row.pop("reason"), row.pop("scalar")
        scalar = math.nan if scalar is None else scalar
        return cls(**_believed(row), kept=kept, reason=reason, scalar=scalar, extra=row)

    def to_row(self) -> dict:
        scalar = self.scalar if math.isfinite(self.scalar) else None
        return {**super().to_row(), "kept": self.kept, "reason": self.reason, "scalar": scalar}


def _believed(row: dict) -> dict[str, Any]:
    """The fields of a Scored but for `extra`; they are taken out of the row."""
    taken = {name: row.pop(name) for name in _ANSWER}
    taken["messages"], taken["response_token_ids"] = tuple(taken["messages"]), tuple(taken["response_token_ids"])
    scores = row.pop("scores")
    taken["scores"] = {name: math.nan if score is None else score for name, score in scores.items()}
    return taken


@dataclass(frozen=True)
class Labelled:
    """A row of HelpSteer2: a conversation, its answer and what people said of it."""

    id: str
    messages: tuple[Message, ...]
    response: str
    labels: dict[str, float]
    """One number from 0 to 4 per attribute; where several people's stand in a list, their mean."""
    extra: dict[str, Any] = field(default_factory=dict)

    unique: ClassVar[bool] = False  # two people may write the same answer, and the schema has no id

    @classmethod
    def from_row(cls, row: dict, where: str = "row") -> Labelled:
        messages, response = fields.conversation(row, where), fields.text(row.get("response"), "response", where)
        if messages[-1]["role"] != "user":
            raise RowError("the last turn is not the user's", where=where, found=messages[-1]["role"])
        labels = {name: fields.label(row, name, where) for name in ATTRIBUTES}
        name = fields.row_id(row, lambda: fields.hash_of([*messages, response]), where)
        columns = fields.extra(row, "id", "messages", "prompt", "response", *ATTRIBUTES)
        return cls(name, messages, response, labels, columns)
