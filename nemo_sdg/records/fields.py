"""The columns of a row, each checked once: text that a file can hold, turns that alternate, finite numbers."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from nemo_sdg.config.selection import ATTRIBUTES, MISSING
from nemo_sdg.errors import RowError

Message = dict[str, str]
FINISH_REASONS = ("stop", "length", "context")
CONTROL_PIECE = re.compile(r"<extra_id_\d+>")
"""The tokenizer reads these anywhere in a text; inside a turn they would forge the end of the turn."""

_TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")
_DIGITS, _PACK = tuple(f"%.{digits}g" for digits in range(1, 18)), struct.Struct("<f").pack
RESPONSE_COLUMNS = (
    "id",
    "prompt_id",
    "sample",
    "messages",
    "prompt",
    "response",
    "response_token_ids",
    "finish_reason",
    "provenance",
)


def parse_turns(text: str) -> tuple[Message, ...]:
    """The turns of a prompt in HelpSteer2's form, where `\\n<extra_id_1>Assistant\\n` stands between two of them."""
    first, *rest = _TURN.split(text)
    turns = [{"role": "user", "content": first}]
    turns += [{"role": role.lower(), "content": content} for role, content in zip(rest[::2], rest[1::2])]
    return tuple(turns)


def hash_of(messages: Any) -> str:
    """16 hex digits that name a conversation."""
    text = json.dumps(messages, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shortest_float32(value: float) -> float | None:
    """The float with the fewest decimals that is the same float32; None when there is no finite one."""
    try:
        value = float(value)
    except OverflowError:
        return None
    return _shortest(value) if value else value  # 0.0 and -0.0 are equal, so no cache can tell them apart


@lru_cache(maxsize=1 << 12)
def _shortest(value: float) -> float | None:
    """Of a number that is not zero. A score is written several times: in a decision, in each dataset."""
    exact = _float32(value) if math.isfinite(value) else None
    if exact is None:
        return None
    # What has six digits or fewer is no nearer than the nearest that has six, and what is further away than 2^-23 of the
    # number is another float32 (below 1e-37 those lie further apart).
    away, first = abs(float("%.6g" % value) - value), 0
    if abs(value) > 1e-37 and away > abs(value) / 2**23 * 1.001:
        first = 6
    for digits in _DIGITS[first:]:
        short = float(digits % value)
        if _float32(short) == exact:
            return short
    raise AssertionError(f"17 digits are not {value}")


def _float32(value: float) -> bytes | None:
    try:
        return _PACK(value)
    except OverflowError:  # rounding up to few digits may leave float32's range
        return None


def answer(row: dict, where: str) -> dict[str, Any]:
    """The checked fields of a Response. `response` may also stand as the last, assistant's, message."""
    messages = conversation(row, where)
    response = row.get("response")
    if response is None and messages[-1]["role"] == "assistant":
        *before, last = messages
        messages, response = tuple(before), last["content"]
    if not isinstance(response, str):
        raise RowError("no response", where=where, found=type(response).__name__, expected="text in 'response'")
    encodable(response, "response", where)
    if messages[-1]["role"] != "user":
        raise RowError("the turn before the response is not the user's", where=where, found=messages[-1]["role"])
    ids, sample, asked = row.get("response_token_ids", ()), row.get("sample", 0), row.get("prompt_id")
    if not isinstance(ids, (list, tuple)) or not all(type(x) is int and x >= 0 for x in ids):
        raise RowError("response_token_ids are not token ids", where=where, expected="a list of whole numbers")
    if type(sample) is not int or sample < 0:
        raise RowError("the sample is not a number", where=where, found=repr(sample), expected="0, 1, 2 ...")
    finish = row.get("finish_reason", "stop")
    if finish not in FINISH_REASONS:
        expected = "one of " + ", ".join(FINISH_REASONS)
        raise RowError("unknown finish_reason", where=where, found=repr(finish), expected=expected)
    provenance = row.get("provenance") or {}
    if not isinstance(provenance, dict):
        raise RowError("the provenance is not a mapping", where=where, found=type(provenance).__name__)
    return {
        "id": row_id(row, lambda: hash_of([*messages, response]), where),
        "prompt_id": row_id({"id": hash_of(messages) if asked in (None, "") else asked}, str, where),
        "sample": sample,
        "messages": messages,
        "response": response,
        "response_token_ids": tuple(ids),
        "finish_reason": finish,
        "provenance": provenance,
    }


def conversation(row: dict, where: str) -> tuple[Message, ...]:
    """The turns of `messages` or of `prompt`: an optional system text, then user and assistant by turns."""
    given = [key for key in ("messages", "prompt") if row.get(key) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "neither"
        raise RowError("no single prompt", where=where, found=found, expected="either 'messages' or 'prompt'")
    messages = row[given[0]]
    if given == ["prompt"] and not isinstance(messages, list):  # TRL's prompts are lists of messages
        messages = list(parse_turns(text(messages, "prompt", where)))
    if not isinstance(messages, (list, tuple)) or not messages or not all(isinstance(m, dict) for m in messages):
        expected = '[{"role": ..., "content": ...}, ...]'
        raise RowError(
            "the messages are not a list of turns", where=where, found=type(messages).__name__, expected=expected
        )
    turns = [{"role": m.get("role"), "content": m.get("content")} for m in messages]
    speakers = [turn["role"] for turn in turns]
    spoken = speakers[1:] if speakers[0] == "system" else speakers
    if not spoken or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(spoken)):
        expected = "user, assistant, user ... after an optional system text"
        raise RowError(
            "the turns do not alternate", where=where, found=", ".join(map(str, speakers)), expected=expected
        )
    for turn in turns:
        if turn["role"] == "system" and turn["content"] == "":
            continue
        text(turn["content"], f"the {turn['role']}'s content", where)
        if CONTROL_PIECE.search(turn["content"]):
            piece = CONTROL_PIECE.search(turn["content"]).group()
            raise RowError(f"the {turn['role']}'s content holds a control piece", where=where, found=piece)
    return tuple(turns)


def scores(row: dict, where: str) -> dict[str, float]:
    given = row.get("scores")
    if not isinstance(given, dict):
        raise RowError("no scores", where=where, found=type(given).__name__, expected="a number per attribute")
    absent = [name for name in ATTRIBUTES if name not in given]
    if absent:
        raise RowError(f"the score {absent[0]} is missing", where=where)
    found = {name: math.nan if given[name] is None else number(given[name], name, where) for name in ATTRIBUTES}
    return found | {name: value for name, value in given.items() if name not in found and _is_number(value)}


def all_attributes(scores: dict[str, float]) -> dict[str, float]:
    """The scores of a row: the five attributes in their order, MISSING where a model does not give them, then the others."""
    return {**dict.fromkeys(ATTRIBUTES, MISSING), **scores}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def own_label(row: dict, name: str, where: str) -> float:
    """What people said in a column of the user's own, on a scale of their own; MISSING where they said nothing."""
    given = row.get(name)
    if given is None or given == [] or given == MISSING:
        return MISSING
    values = [number(value, name, where) for value in (given if isinstance(given, list) else [given])]
    return math.fsum(values) / len(values)


def label(row: dict, name: str, where: str) -> float:
    """What people said of one attribute, 0 to 4; the mean where HelpSteer2's disagreements hold a number of each."""
    given = row.get(name)
    if given is None or given == []:
        raise RowError(f"the label {name} is missing", where=where, expected="a number from 0 to 4")
    values = [number(value, name, where) for value in (given if isinstance(given, list) else [given])]
    for value in values:
        if not 0 <= value <= 4:  # -100, the sentinel for "missing" in training files, is caught here too
            raise RowError(f"the label {name} is out of range", where=where, found=value, expected="0 to 4")
    return math.fsum(values) / len(values)


def number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowError(f"{name} is not a number", where=where, found=repr(value))
    try:
        converted = float(value)
    except OverflowError:
        converted = math.inf
    if not math.isfinite(converted):
        raise RowError(f"{name} is not finite", where=where)
    return converted


def text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        found = "empty text" if isinstance(value, str) else type(value).__name__
        raise RowError(f"{name} has no text", where=where, found=found)
    encodable(value, name, where)
    return value


def encodable(text: str, name: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError(f"{name} holds half of a surrogate pair, which no file can hold", where=where) from None


def row_id(row: dict, default: Callable[[], str], where: str) -> str:
    name = row["id"] if "id" in row else default()
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise RowError("the id is not a name", where=where, found=repr(name), expected="text or a whole number")
    encodable(str(name), "id", where)
    return str(name)


def extra(row: dict, *known: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in known}


def with_extra(row: dict[str, Any], columns: dict[str, Any]) -> dict[str, Any]:
    """A row and the columns that pass through; where both have a name (a prompt with a `response`), ours stays."""
    return {**row, **extra(columns, *row)}
