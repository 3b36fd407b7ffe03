"""Texts that rows are held against: evaluation files must not leak, and the user's own rows are not to be copied.

A row leaks if its prompt or its response shares n words in a row with a text of the file (n-gram overlap as in GPT-3,
arXiv 2005.14165 appendix C, with 13 words by default), marks and letter case aside. It copies if at least half of the
n-grams of its last prompt or of its response are the file's. Where words are not spaced, n words are
n x CHARACTERS_PER_WORD characters. A first question of fewer words counts when it is the whole of a user's turn; so
does a short `text`, also of a response. A short answer ("yes", "42") or a later turn ("Thanks") is nothing that could
leak.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nemo_sdg.errors import UserError
from nemo_sdg.quality.text import CHARACTERS_PER_WORD, Tokens, tokens
from nemo_sdg.records import Fault, parse_turns, read_objects

COPIED = 0.5
"""The share of a text's n-grams from which on it is a copy."""
_QUESTIONS = ("prompt", "question", "instruction", "query", "problem")
_ANSWERS = ("answer", "response", "output", "completion", "solution", "chosen", "reference")
_TEXTS = ("text", "content")


@dataclass
class Reference:
    """One row of a file."""

    where: str
    """`file:line`."""
    questions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def read(file: str) -> Iterator[Reference]:
    """The rows of a file. Raises UserError for one that cannot be read: it could not be looked for."""
    for line, row in read_objects(file):
        where = f"{file}:{line}"
        if isinstance(row, Fault):
            raise UserError(row.reason, where=where, way_out="correct the line, or take it out of the file")
        found = Reference(where)
        for name, value in row.items():
            if name == "prompt" and isinstance(value, str):
                _add_turns(found, parse_turns(value))
            elif name == "messages" and isinstance(value, list):
                _add_turns(found, value)
            else:
                kinds = ((_QUESTIONS, found.questions), (_ANSWERS, found.answers), (_TEXTS, found.texts))
                for names, texts in kinds:
                    if name in names:
                        given = value if isinstance(value, list) else [value]
                        texts += [one for one in given if isinstance(one, str)]
        if not (found.questions or found.answers or found.texts):
            expected = "a text in " + ", ".join(("messages", *_QUESTIONS, *_ANSWERS, *_TEXTS))
            columns = ", ".join(row) or "no column"
            raise UserError("no text to compare with", where=where, found=columns, expected=expected)
        yield found


def _add_turns(found: Reference, turns: Sequence[Any]) -> None:
    for turn in turns:
        if isinstance(turn, dict) and isinstance(turn.get("content"), str):
            sides = {"user": found.questions, "assistant": found.answers}
            if turn.get("role") in sides:
                sides[turn["role"]].append(turn["content"])


class Grams:
    """A set of hashes, each with the text that it came from first. Few look-ups go further than two tables of bits."""

    def __init__(self, grams: Sequence[np.ndarray]) -> None:
        everything = np.concatenate([np.empty(0, np.uint64), *grams])
        self._hashes, first = np.unique(everything, return_index=True)
        owners = np.repeat(np.arange(len(grams), dtype=np.int32), [len(some) for some in grams])
        self._owners = owners[first]
        bits = max(16, (8 * len(self._hashes)).bit_length())
        self._shift, self._mask = np.uint64(64 - bits), np.uint64((1 << bits) - 1)
        self._high, self._low = np.zeros(1 << bits, np.bool_), np.zeros(1 << bits, np.bool_)
        self._high[self._hashes >> self._shift] = True
        self._low[self._hashes & self._mask] = True

    def __len__(self) -> int:
        return len(self._hashes)

    def owners(self, hashes: np.ndarray) -> np.ndarray:
        """For each hash that is in the set, in order, the number of its text."""
        maybe = hashes[self._high.take((hashes >> self._shift).view(np.int64))]
        maybe = maybe[self._low.take((maybe & self._mask).view(np.int64))]
        if not len(maybe):
            return np.empty(0, np.int32)
        at = np.searchsorted(self._hashes, maybe)
        at[at == len(self._hashes)] = 0
        return self._owners[at[self._hashes[at] == maybe]]


class References:
    """All rows of some files, ready for look-ups. n is a number of words."""

    def __init__(self, files: Sequence[str], n: int) -> None:
        self._n, self._where = n, []
        self._short: dict[str, dict[int, int]] = {"user": {}, "any": {}}
        long: dict[bool, list[np.ndarray]] = {False: [], True: []}
        for file in files:
            for row in read(file):
                parts: dict[bool, list[np.ndarray]] = {False: [], True: []}
                first, *later = row.questions or [""]
                for side, texts in (("user", [first]), (None, later + row.answers), ("any", row.texts)):
                    for text in map(tokens, texts):
                        grams = text.grams(text.scaled(n))
                        parts[text.unspaced].append(grams)
                        if side is not None and not len(grams) and len(text.words_T):
                            self._short[side].setdefault(_whole(text), len(self._where))
                for unspaced, grams in long.items():
                    grams.append(np.concatenate([np.empty(0, np.uint64), *parts[unspaced]]))
                self._where.append(row.where)
        self._long = {unspaced: Grams(grams) for unspaced, grams in long.items()}

    def leak(self, turns: Sequence[tuple[str, Tokens]]) -> str | None:
        """Where the text stands (`file:line`) that the first of these turns shares something with, if any.

        Args:
            turns: (role, text) of a conversation, the response as the assistant's last turn.
        """
        for role, text in turns:
            for unspaced, index in self._long.items():
                if len(index):
                    owners = index.owners(text.grams(self._n * (CHARACTERS_PER_WORD if unspaced else 1)))
                    if len(owners):
                        return self._where[owners[0]]
            owner = self._owner_of_short(text, role)
            if owner is not None:
                return self._where[owner]
        return None

    def copied(self, question: Tokens, response: Tokens) -> bool:
        """Whether a row copies a text of the files."""
        return self._copies(question, "user") or self._copies(response, "assistant")

    def _copies(self, text: Tokens, role: str) -> bool:
        grams = text.grams(text.scaled(self._n))
        if not len(grams):
            return self._owner_of_short(text, role) is not None
        return len(self._long[text.unspaced].owners(grams)) >= COPIED * len(grams)

    def _owner_of_short(self, text: Tokens, role: str) -> int | None:
        """The number of the text of fewer than n words that this turn is, if any."""
        if not 0 < len(text.words_T) < text.scaled(self._n):
            return None
        whole = _whole(text)
        found = [side[whole] for name, side in self._short.items() if name in (role, "any") and whole in side]
        return min(found, default=None)


def _whole(text: Tokens) -> int:
    """A text with at least one word as one gram."""
    return int(text.grams(len(text.words_T))[0])
