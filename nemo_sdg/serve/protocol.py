"""What a chat-completions request may say, checked once. No torch, no HTTP.

Reference: OpenAI's API reference, "Create chat completion"; top_k, min_p, repetition_penalty, min_tokens and
stop_token_ids by the names that vLLM and NVIDIA NIM gave them. A field that would change the answer and that we do
not offer is refused: leaving it out quietly would give another answer than the one that was asked for.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

from nemo_sdg.config.checks import RULES
from nemo_sdg.config.values import nearest
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.errors import RowError
from nemo_sdg.records import Prompt, Response
from nemo_sdg.serve.refusals import ApiError, bad_request, from_row

MAX_N = 128
MAX_STOPS = 16
_INT64 = 2**63

_NEUTRAL: dict[str, tuple] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "top_logprobs": (0,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
}
"""What we do not offer, and the values by which a client says that it does not want it either (null always does)."""

_WITHOUT_EFFECT = ("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier")
_WITHOUT_EFFECT += ("prompt_cache_key",)
_OFFERED = ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p")
_OFFERED += ("repetition_penalty", "min_tokens", "stop", "stop_token_ids", "seed", "n", "logprobs", "stream")
_OFFERED += ("stream_options", "nemo_sdg")


@dataclass(frozen=True)
class Chat:
    """A conversation that wants `n` answers."""

    messages: tuple[dict[str, str], ...]
    sampling: Sampling
    prompt_id: str
    """With the number of the sample it owns the random stream: the same as in a run that has this row."""
    first_sample: int
    n: int
    samples: int
    """How many answers the prompt gets in all, with those of other requests; `Request.samples`."""
    stream: bool
    include_usage: bool


def parse_json(data: bytes) -> dict[str, Any]:
    """The object in a request's body. Raises ApiError."""
    try:
        body = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {str(error)[:120]}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is not a JSON object, found {type(body).__name__}", code="invalid_json")
    return body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def parse_chat(body: dict[str, Any], context: int) -> Chat:
    """A request to a policy whose context holds so many tokens. Raises ApiError naming the field."""
    _check_fields(body)
    fields = _Fields(body)
    limits = [fields.whole(name, None, "generate.max_tokens") for name in ("max_completion_tokens", "max_tokens")]
    given = {limit for limit in limits if limit is not None}
    if len(given) > 1:
        raise bad_request("max_tokens", "it contradicts max_completion_tokens", body["max_tokens"], str(limits[0]))
    # More than the context holds is the context; a stream of random numbers of any length would fill the memory.
    max_tokens = min(given.pop() if given else context, context)
    min_tokens = fields.whole("min_tokens", 0, "generate.min_tokens")
    if min_tokens > max_tokens:
        raise bad_request("min_tokens", "no response could be long enough", min_tokens, f"at most {max_tokens}")
    top_k = body.get("top_k")
    own = _own_stream(body.get("nemo_sdg"))
    seed = fields.whole("seed", None, None, -_INT64, _INT64 - 1)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
        raise bad_request("stream_options", "it is unknown", options, '{"include_usage": true}')
    sampling = Sampling(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=fields.number("temperature", 1.0, "generate.temperature"),
        top_p=fields.number("top_p", 1.0, "generate.top_p"),
        top_k=0 if top_k == -1 else fields.whole("top_k", 0, "generate.top_k"),  # -1 is how vLLM says "all"
        min_p=fields.number("min_p", 0.0, "generate.min_p"),
        repetition_penalty=fields.number("repetition_penalty", 1.0, "generate.repetition_penalty"),
        stop=_stops(body.get("stop")),
        stop_ids=_stop_ids(body.get("stop_token_ids")),
        logprobs=fields.flag("logprobs"),
        seed=own.get("seed", secrets.randbits(63) if seed is None else seed),
        round=own.get("round", 0),
    )
    messages = _messages(body)
    try:
        prompt = Prompt.from_row({"messages": messages}, "messages")
    except RowError as error:
        raise from_row(error) from None
    n = fields.whole("n", 1, None, 1, MAX_N)
    return Chat(
        messages=prompt.messages,
        sampling=sampling,
        prompt_id=own.get("prompt_id", prompt.id),
        first_sample=own.get("sample", 0),
        n=n,
        samples=max(n, own.get("samples", 1)),
        stream=fields.flag("stream"),
        include_usage=options.get("include_usage") is True,
    )


def parse_judgement(body: dict[str, Any]) -> tuple[dict[str, str], ...]:
    """The conversation that a reward model is to score. How to sample means nothing to it and may stand there.

    Raises:
        ApiError: it does not end with the assistant's turn, or wants a stream or several answers.
    """
    _check_fields(body)
    for name, only in (("stream", False), ("n", 1)):
        if body.get(name) not in (None, only):
            raise bad_request(name, "a reward model gives one answer at once", body[name], str(only).lower())
    try:
        row = Response.from_row({"messages": _messages(body)}, "messages")
    except RowError as error:
        raise from_row(error) from None
    return (*row.messages, {"role": "assistant", "content": row.response})


def _check_fields(body: dict[str, Any]) -> None:
    known = (*_OFFERED, *_NEUTRAL, *_WITHOUT_EFFECT)
    for name, value in body.items():
        if name not in known:
            hint = f"the nearest that it knows is {nearest(name, known)}"
            message = f"{name[:80]!r}: this server does not know the field; {hint}"
            raise ApiError(400, message, param=name[:80], code="unknown_parameter")
        if name in _NEUTRAL and value is not None and value not in _NEUTRAL[name]:
            expected = " or ".join(json.dumps(neutral) for neutral in (*_NEUTRAL[name], None))
            raise bad_request(name, "this server does not offer it", value, expected)


class _Fields:
    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body

    def whole(self, name: str, default: Any, rule: str | None, low: int = -_INT64, high: int = _INT64 - 1) -> Any:
        value = self.body.get(name)
        if value is None:
            return default
        if type(value) is not int or not low <= value <= high:
            expected = "a whole number" if low == -_INT64 else f"a whole number from {low} to {high}"
            raise bad_request(name, "the value is not allowed", value, expected)
        return self._held(name, value, rule)

    def number(self, name: str, default: float, rule: str) -> float:
        value = self.body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
            raise bad_request(name, "the value is not allowed", value, "a number")
        return float(self._held(name, value, rule))

    def flag(self, name: str) -> bool:
        value = self.body.get(name)
        if value not in (None, False, True) or isinstance(value, (int, float)) and not isinstance(value, bool):
            raise bad_request(name, "the value is not allowed", value, "true or false")
        return bool(value)

    def _held(self, name: str, value: Any, rule: str | None) -> Any:
        if rule is not None:
            expected, holds = RULES[rule]
            if not holds(value):
                raise bad_request(name, "the value is not allowed", value, expected)
        return value


def _stops(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if texts is None:
        return ()
    good = isinstance(texts, list) and len(texts) <= MAX_STOPS
    if not good or not all(isinstance(text, str) and text and _encodable(text) for text in texts):
        raise bad_request("stop", "the value is not allowed", value, f"a text or a list of at most {MAX_STOPS} texts")
    return tuple(texts)


def _stop_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > 1024 or not all(type(x) is int and 0 <= x < 2**31 for x in value):
        raise bad_request("stop_token_ids", "the value is not allowed", value, "a list of token ids")
    return tuple(value)


def _own_stream(value: Any) -> dict[str, Any]:
    """Whose random stream an answer takes: what `nemo-sdg` sends when this server is its endpoint."""
    if value is None:
        return {}
    kinds = {"prompt_id": str, "sample": int, "samples": int, "seed": int, "round": int}
    if not isinstance(value, dict) or not set(value) <= set(kinds):
        raise bad_request("nemo_sdg", "it is unknown", value, "some of " + ", ".join(kinds))
    for name, given in value.items():
        low = -_INT64 if name == "seed" else 0
        wrong = type(given) is not kinds[name] or (kinds[name] is int and not low <= given < _INT64)
        if wrong or given == "" or (kinds[name] is str and not _encodable(given)):
            raise bad_request(f"nemo_sdg.{name}", "the value is not allowed", given, f"a {kinds[name].__name__}")
    return dict(value)


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns with their contents as texts: a content may also come as a list of text parts."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(turn, dict) for turn in messages):
        raise bad_request("messages", "no turns", messages, '[{"role": ..., "content": ...}, ...]')
    return [{"role": turn.get("role"), "content": _content(turn.get("content"))} for turn in messages]


def _content(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise bad_request("messages", "a part of a turn is not text", part, '{"type": "text", "text": ...}')
    return "".join(part["text"] for part in content)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
