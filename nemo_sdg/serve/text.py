"""The text of tokens that come one by one: whole characters only, and never a part of a stop text. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
_UNFINISHED = "\ufffd"
"""How a decoder shows bytes that are no character, or not yet one."""


def answer_text(text: str) -> str:
    """The answer without the newline by which the template closes each turn, as in a run's rows."""
    return text.removesuffix("\n")


class TextStream:
    """All that `feed` and `finish` return, joined, is what `finish` was given."""

    def __init__(self, decode: Decode, stop: Sequence[str]) -> None:
        self._decode, self._stop = decode, stop
        self._tokens: list[int] = []
        self._window = self._read = 0
        """Text up to token `_read` is decoded; it is decoded again from `_window`, as pieces depend on neighbours."""
        self._text = ""
        self._sent = 0

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens have made certain."""
        self._tokens += token_ids
        before = self._decode(self._tokens[self._window : self._read])
        after = self._decode(self._tokens[self._window :])
        if len(after) <= len(before) or after.endswith(_UNFINISHED):
            return ""
        self._text += after[len(before) :]
        self._window, self._read = self._read, len(self._tokens)
        return self._send(self._text, self._certain())

    def finish(self, text: str) -> str:
        """What is left of the whole answer."""
        return self._send(text, len(text))

    def _send(self, text: str, end: int) -> str:
        piece = text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece

    def _certain(self) -> int:
        """Characters that no stop text can cut off any more, without the newline that may close the turn.

        A stop text that stands there whole did not end the answer, for there were fewer tokens than min_tokens.
        """
        end = len(self._text) - max((_overlap(self._text, stop) for stop in self._stop), default=0)
        return end - 1 if self._text.endswith("\n", 0, end) else end


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
