"""The JSON of every answer: chat completions, their chunks, NIM's reward convention, the list of models. No torch."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_sdg.engine.requests import Generation

OWNER = "nemo_sdg"
"""`owned_by` in /v1/models: how another run knows that this server takes the field "nemo_sdg"."""

_FINISH = {"stop": "stop", "length": "length", "context": "length"}
"""OpenAI knows no "context"; our own reason stands in choices[].nemo_sdg."""

PieceBytes = Callable[[int], bytes]


@dataclass(frozen=True)
class Reply:
    """What all parts of one answer share."""

    model: str
    prompt_tokens: int
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def _frame(self, kind: str, choices: list[dict], **more: Any) -> dict[str, Any]:
        frame = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        return {**frame, **more}

    def completion(self, answers: Sequence[tuple[Generation, str]], piece_bytes: PieceBytes) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "logprobs": _logprobs(made, piece_bytes),
                "finish_reason": _FINISH[made.finish_reason],
                "nemo_sdg": _own(made),
            }
            for index, (made, text) in enumerate(answers)
        ]
        spoken = sum(len(made.token_ids) for made, _ in answers)
        return self._frame("chat.completion", choices, usage=self.usage(spoken))

    def chunk(
        self, index: int, delta: dict[str, str], made: Generation | None = None, piece_bytes: PieceBytes | None = None
    ) -> dict[str, Any]:
        """A piece of the answer with this index; with `made` the last one, which also holds its log-probabilities."""
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        if made is not None and piece_bytes is not None:
            choice["logprobs"] = _logprobs(made, piece_bytes)
            choice["finish_reason"], choice["nemo_sdg"] = _FINISH[made.finish_reason], _own(made)
        return self._frame("chat.completion.chunk", [choice])

    def usage_chunk(self, completion_tokens: int) -> dict[str, Any]:
        return self._frame("chat.completion.chunk", [], usage=self.usage(completion_tokens))

    def judgement(self, scores: dict[str, float]) -> dict[str, Any]:
        """NIM's reward convention, in which `message` is a list of one message and a "logprob" is a score."""
        rest = {"bytes": None, "top_logprobs": []}
        entries = [{"token": name, "logprob": score, **rest} for name, score in scores.items()]
        text = ",".join(f"{name}:{score}" for name, score in scores.items())
        choice = {
            "index": 0,
            "message": [{"role": "assistant", "content": text}],
            "logprobs": {"content": entries},
            "finish_reason": "length",
        }
        return self._frame("chat.completion", [choice], usage=self.usage(len(scores)))

    def usage(self, completion_tokens: int) -> dict[str, int]:
        total = self.prompt_tokens + completion_tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def event(data: dict[str, Any] | str) -> bytes:
    """One server-sent event (WHATWG HTML, section 9.2)."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def _own(made: Generation) -> dict[str, Any]:
    return {"token_ids": list(made.token_ids), "finish_reason": made.finish_reason}


def _logprobs(made: Generation, piece_bytes: PieceBytes) -> dict[str, Any] | None:
    if made.logprobs is None:
        return None
    entries = []
    for token, logprob in zip(made.token_ids, made.logprobs):
        raw = piece_bytes(token)
        # JSON has no infinity; this is OpenAI's number for it.
        shown = logprob if math.isfinite(logprob) else -9999.0
        text = raw.decode("utf-8", "replace")
        entries.append({"token": text, "logprob": shown, "bytes": list(raw), "top_logprobs": []})
    return {"content": entries}
