"""Texts as arrays of hashes: tokens, n-grams and shingles, without a loop over words.

A token is a word (a run of letters, digits and combining marks), or one character of a script that is written without
spaces (Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar), or one mark (punctuation, a symbol). Letter case and forms
of width do not count (NFKC, then case folding). Tokens that are equal have equal hashes on every machine; two that
differ have the same one with a probability of about 2^-64.

Shape suffixes: C characters, T tokens.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b

import numpy as np

CHARACTERS_PER_WORD = 2
"""Characters that count as one word where words are not spaced: a word of Japanese or Thai has two to four."""

_WORD, _UNSPACED, _MARK = 1, 2, 3
_LAST = 0x33480
"""The code points behind this one are private, tags or variation selectors, which stand for no text of their own."""
_SCRIPTS = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x19E0, 0x19FF), (0x2E80, 0x2FDF), (0x3005, 0x3007),
    (0x3021, 0x3029), (0x3031, 0x303B), (0x3041, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0x20000, 0x33479),
)  # fmt: skip
"""Blocks of the scripts without spaces (Unicode's Blocks.txt), without the punctuation beside kana."""
_MASK = (1 << 64) - 1
_P, _Q = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
"""Bases of the two polynomials (characters of a token, tokens of an n-gram), odd so that they have an inverse."""


@dataclass(frozen=True)
class Tokens:
    """A text as its tokens, in order."""

    hashes_T: np.ndarray
    words_T: np.ndarray
    """The hashes of the tokens that are no marks."""
    unspaced: bool
    """Whether at least half of those are characters of a script without spaces."""
    _grams: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def scaled(self, n: int) -> int:
        """n words in the tokens of this text."""
        return n * CHARACTERS_PER_WORD if self.unspaced else n

    def grams(self, n: int) -> np.ndarray:
        """The n-grams of the words, by a number of tokens; made once, for one text is held against several files."""
        if n not in self._grams:
            self._grams[n] = _windows(self._sums, n)
        return self._grams[n]

    @cached_property
    def _sums(self) -> np.ndarray:
        return _running_sums(self.words_T)


NOTHING = Tokens(np.empty(0, np.uint64), np.empty(0, np.uint64), False)
"""A text without tokens."""


def tokens(text: str) -> Tokens:
    """A text cut into tokens."""
    kinds, values = _tables()
    if text.isascii():  # the same in an eighth of the bytes
        points_C = np.frombuffer(text.lower().encode(), np.uint8)
    else:
        folded = unicodedata.normalize("NFKC", text).casefold()
        points_C = np.minimum(np.frombuffer(folded.encode("utf-32-le"), np.uint32), _LAST)
    kinds_C = kinds.take(points_C)
    apart_C = kinds_C != _WORD
    starts_C = apart_C & (kinds_C != 0)
    starts_C[1:] |= apart_C[:-1] & ~apart_C[1:]
    starts_C[:1] |= ~apart_C[:1]
    first_T = np.flatnonzero(starts_C)
    if not len(first_T):
        return NOTHING
    powers, inverses = _powers(_P, _room(len(points_C)))
    # A sum over the characters of a token, wherever it stands; what lies between tokens adds nothing.
    weighed_C = values.take(points_C)
    weighed_C *= powers[: len(points_C)]
    sums_T = np.add.reduceat(weighed_C, first_T) * inverses.take(first_T)
    hashes_T, kinds_T = _mixed(sums_T), kinds_C.take(first_T)
    words_T = hashes_T[kinds_T != _MARK]
    return Tokens(hashes_T, words_T, bool(len(words_T)) and 2 * np.count_nonzero(kinds_T == _UNSPACED) >= len(words_T))


def ngrams(hashes_T: np.ndarray, n: int) -> np.ndarray:
    """A hash for each n tokens in a row, in order; empty where there are fewer."""
    return _windows(_running_sums(hashes_T), n)


def shingles(text: Tokens, n: int) -> np.ndarray:
    """The shingles of n words, marks included; a shorter text that is not empty is one shingle."""
    return ngrams(text.hashes_T, max(min(text.scaled(n), len(text.hashes_T)), 1))


def hash64(text: str) -> int:
    """64 bits, with a sign, that name a text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _running_sums(hashes_T: np.ndarray) -> np.ndarray:
    powers, _ = _powers(_Q, _room(len(hashes_T)))
    sums = np.zeros(len(hashes_T) + 1, np.uint64)
    np.cumsum(hashes_T * powers[: len(hashes_T)], out=sums[1:])
    return sums


def _windows(sums: np.ndarray, n: int) -> np.ndarray:
    """What the polynomial is over each n tokens, whatever stands before them."""
    count = len(sums) - n
    if count <= 0:
        return np.empty(0, np.uint64)
    _, inverses = _powers(_Q, _room(len(sums) - 1))
    return _mixed((sums[n:] - sums[:-n]) * inverses[:count])


def _mixed(values: np.ndarray) -> np.ndarray:
    """The values, in place, so that their high bits reach the low ones and their low bits the high ones."""
    values ^= values >> np.uint64(32)
    values *= np.uint64(0xD6E8FEB86659FD93)
    values ^= values >> np.uint64(32)
    return values


def _room(length: int) -> int:
    return max(1 << 13, 1 << (length - 1).bit_length())


@lru_cache(maxsize=32)
def _powers(base: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """base^0, base^1 ... and their inverses, modulo 2^64."""
    both = []
    for one in (base, pow(base, -1, 1 << 64)):
        powers = np.full(count, one, np.uint64)
        powers[0] = 1
        both.append(np.multiply.accumulate(powers))
    return both[0], both[1]


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """By code point: what kind of character it is (0 for space and control), and its 64 bits (0 for these)."""
    of_category = {"L": _WORD, "N": _WORD, "M": _WORD, "P": _MARK, "S": _MARK}
    categories = (unicodedata.category(chr(point))[0] for point in range(_LAST))
    kinds = np.fromiter((of_category.get(category, 0) for category in categories), np.uint8, _LAST)
    for first, last in _SCRIPTS:
        block = kinds[first : last + 1]
        block[block == _WORD] = _UNSPACED
    kinds = np.append(kinds, np.uint8(0))
    values = _mixed(np.arange(1, _LAST + 2, dtype=np.uint64) * np.uint64(_P))
    values[kinds == 0] = 0
    return kinds, values
