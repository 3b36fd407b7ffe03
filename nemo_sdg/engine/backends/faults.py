"""What goes wrong between us and a server: what passes, what refuses one row, and what refuses everybody."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from typing import Any

import httpx
import openai

from nemo_sdg.errors import RowError

PASSING = (408, 409, 429)
"""Statuses that another try may not meet again, besides all from 500."""
CROWDED = (429, 503)
"""Those which say that the server has too much to do, as an answer that does not come in time does."""
EVERYBODY = (401, 402, 403, 404, 405)
"""Statuses that say nothing of the row: no key, no credit, not allowed, no such model or address."""
_LONGEST = 200


class Passing(Exception):
    """A try that failed and may be repeated; its text is for people.

    Args:
        crowded: the server has too much to do.
        wait_s: seconds that it asks us to wait.
        absent: nobody listens at the address.
    """

    def __init__(self, text: str, *, crowded: bool = False, wait_s: float | None = None, absent: bool = False) -> None:
        super().__init__(text)
        self.crowded, self.wait_s, self.absent = crowded, wait_s, absent


class Everybody(Exception):
    """The server refuses, whatever the row."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def read_json(body: bytes) -> Any:
    """The answer of a request that went well. Raises Passing if it is none: cut off, or a page of something between."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise Passing("the answer is not JSON") from None
    if isinstance(answer, dict) and answer.get("error") is not None and "choices" not in answer:
        raise Passing("the answer holds an error and no choices")
    return answer


def translate(error: openai.APIError, hide: str) -> Passing | Everybody | RowError:
    """What a failed request says of the server or, with a RowError, of the row.

    Args:
        hide: the key. Servers quote it in their messages; nothing that is shown or written holds it.
    """
    if isinstance(error, openai.APITimeoutError):
        return late()
    if isinstance(error, openai.APIConnectionError):
        return Passing("the connection failed", absent=isinstance(error.__cause__, httpx.ConnectError))
    if not isinstance(error, openai.APIStatusError):
        return Passing(type(error).__name__)
    status = error.status_code
    if isinstance(error.body, dict) and error.body.get("code") == "not_finite":
        return RowError("the model's numbers are not finite")  # says `nemo-sdg serve`, and would say it again
    if status in PASSING or status >= 500:
        return Passing(f"status {status}", crowded=status in CROWDED, wait_s=retry_after(error.response.headers))
    if status in EVERYBODY:
        return Everybody(status)  # without what the server says: it may quote parts of the key
    return RowError("the server refuses the row", found=f"status {status}: {_message(error.body, hide)}")


def late() -> Passing:
    return Passing("no answer in time", crowded=True)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as the server asks (RFC 9110, section 10.2.3), or None; never negative."""
    text = headers.get("retry-after", "").strip()
    try:
        wait = float(text)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(0.0, wait) if wait < float("inf") else None


def _message(body: Any, hide: str) -> str:
    """What the server says, in one line and without the key."""
    if isinstance(body, dict):
        body = next((body[key] for key in ("message", "detail", "error") if body.get(key)), body)
    text = body if isinstance(body, str) else json.dumps(body, default=str)
    if hide:
        text = text.replace(hide, "[key]")  # before it is cut: a part of the key is a secret too
    return " ".join(text.split())[:_LONGEST]
