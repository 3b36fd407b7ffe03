"""A preference pair: one row, so that its two halves cannot be torn apart.

Made from scored responses (quality/pairs.py), or read from a file in one of the two shapes that people have:
HelpSteer2's preference subset (`prompt, response_1, response_2, preference_strength`) or TRL's
(`prompt` or `messages`, `chosen, rejected`, perhaps `score_chosen, score_rejected`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from nemo_sdg.errors import RowError
from nemo_sdg.records import fields
from nemo_sdg.records.fields import Message

_HELPSTEER2 = ("response_1", "response_2", "preference_strength")
_TRL = ("chosen", "rejected", "score_chosen", "score_rejected")
PEOPLE = "people"
"""The judge of a pair that comes from a file."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, the first one better."""

    id: str
    messages: tuple[Message, ...]
    """The prompt's conversation."""
    chosen: str
    rejected: str
    score_chosen: float
    score_rejected: float
    """Weighted scalars; of people's pairs the strength and 0, unless the file has scores."""
    judge: str
    """What told the two apart: verifier, reward or people."""
    scores_chosen: dict[str, float] | None = None
    scores_rejected: dict[str, float] | None = None
    """Per attribute; None where nobody scored them."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Of both halves: {"chosen": ..., "rejected": ...}."""
    extra: dict[str, Any] = field(default_factory=dict)

    unique: ClassVar[bool] = False  # files of pairs have no ids

    @property
    def margin(self) -> float:
        """How much better the chosen one is; below 0 where a verifier overrules the reward model."""
        return self.score_chosen - self.score_rejected

    @classmethod
    def from_row(cls, row: dict, where: str = "row") -> Pair:
        """A pair that people judged; the margin of a tie is 0. Raises RowError."""
        helpsteer2 = "preference_strength" in row
        messages = fields.conversation(row, where)
        if messages[-1]["role"] != "user":
            raise RowError("the last turn is not the user's", where=where, found=messages[-1]["role"])
        if helpsteer2:
            chosen, rejected, scores = _by_strength(row, where)
        else:
            chosen, rejected = (_answer(row.get(name), name, where) for name in ("chosen", "rejected"))
            scores = _scores(row, where)
        if chosen == rejected:
            raise RowError("both answers are the same", where=where)
        name = fields.row_id(row, lambda: fields.hash_of([*messages, chosen, rejected]), where)
        known = _HELPSTEER2 if helpsteer2 else _TRL
        extra = fields.extra(row, "id", "messages", "prompt", *known)
        return cls(name, messages, chosen, rejected, *scores, judge=PEOPLE, extra=extra)


def _by_strength(row: dict, where: str) -> tuple[str, str, tuple[float, float]]:
    """HelpSteer2's answers, the better first; the strength, -3 to 3, is below 0 where the first answer is better."""
    texts = [_answer(row.get(name), name, where) for name in ("response_1", "response_2")]
    strength = fields.number(row["preference_strength"], "preference_strength", where)
    if not -3 <= strength <= 3:
        raise RowError("the preference_strength is out of range", where=where, found=strength, expected="-3 to 3")
    chosen, rejected = texts if strength < 0 else reversed(texts)
    return chosen, rejected, (abs(strength), 0.0)


def _scores(row: dict, where: str) -> tuple[float, float]:
    """Those of TRL's columns; 1 and 0 where there are none, as NeMo-Aligner takes it (model.data.default_*_reward)."""
    given = [row.get("score_chosen"), row.get("score_rejected")]
    if given == [None, None]:
        return 1.0, 0.0
    better, worse = (fields.number(value, "a score of the pair", where) for value in given)
    if better < worse:
        raise RowError("the rejected answer has the higher score", where=where, found=f"{better} and {worse}")
    return better, worse


def _answer(value: Any, name: str, where: str) -> str:
    """An answer as text, or as a list of one assistant's message."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        if value[0].get("role") != "assistant":
            found = value[0].get("role")
            raise RowError(f"{name} is not the assistant's", where=where, found=found)
        value = value[0].get("content")
    answer = fields.text(value, name, where)
    if fields.CONTROL_PIECE.search(answer):
        raise RowError(f"{name} holds a control piece", where=where, found=fields.CONTROL_PIECE.search(answer).group())
    return answer
