"""Counting in a text of any language: words, sentences, paragraphs, scripts.

In scripts that put no space between words (Chinese characters, kana, Thai and its neighbours) every character counts as
a word, as character-based measures for these languages do.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator

# Han with its iteration marks, kana with the long-vowel mark, Thai, Lao, Myanmar, Khmer, half-width kana, rarer Han.
UNSPACED = (
    "\u3005-\u3007\u3041-\u3096\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\uff66-\uff9f\U00020000-\U0003ffff"
)
_WORD = re.compile(f"[{UNSPACED}]|(?:(?![{UNSPACED}])\\w)+")
_SPACED_CHARACTER = f"(?:(?![{UNSPACED}])\\w)"
# A full stop ends a sentence before white space, closing quotes counted in; a full-width one needs no space after it.
_END = re.compile(r"""(?:[.!?…]+["'”’)\]]*(?=\s|$)|[。！？｡]+[」』”’）)]*|\n+)""")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Dr|Mr|Mrs|Ms|Prof|Sr|Jr|St|vs|etc|No|Fig|approx|e\.g|i\.e|cf|al)|\b[A-Z](?:\.[A-Z])*)\.$"
)
_BEHIND_WORD = re.compile(r"(?:[^\w\s]*(?:\s+|\Z)|[。！？｡、]+[」』”’）)]*\s*)?")
"""What belongs to the word before it: its full stop, but not the point of a decimal."""
_LIST_MARK = re.compile(r"^[ \t]*(?:[-*•・]|\(?\d{1,3}[.)．、）])[ \t]*", re.MULTILINE)


def words(text: str) -> list[str]:
    """The words of a text; each character of a script without spaces is one."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """The sentences of a text. A line's end ends one too; titles (Dr.), initials, decimals and list marks do not."""
    text = _LIST_MARK.sub("", text)
    ends = [0, *_sentence_ends(text), len(text)]
    return [piece for begin, end in zip(ends, ends[1:]) if words(piece := text[begin:end].strip())]


def _sentence_ends(text: str) -> Iterator[int]:
    start = 0
    for end in _END.finditer(text):
        piece = text[start : end.end()]
        if not (_ABBREVIATION.search(piece.rstrip("\"'”’)]")) and text[end.end() :].strip()):
            yield end.end()
            start = end.end()


def pieces(text: str, most: int) -> list[str]:
    """A text in pieces of at most `most` words, cut where a paragraph ends, else a sentence, else a word: the last such place
    in the second half of what would fit. No word is lost."""
    found, start, first = [], 0, 0
    ends = [match.end() for match in _WORD.finditer(text)]
    while len(ends) - first > most:
        fits = text[start : _BEHIND_WORD.match(text, ends[first + most - 1]).end()]
        paragraph = (match.end() for match in re.finditer(r"\n\s*\n", fits))
        word = (match.end() for match in re.finditer(r"\s+", fits))
        for borders in (paragraph, _sentence_ends(fits), word, [len(fits)]):
            cut = max((border for border in borders if border > len(fits) / 2), default=None)
            if cut is not None:
                break
        found.append(text[start : start + cut].strip())
        start += cut
        first = bisect_right(ends, start)
    return [piece for piece in (*found, text[start:].strip()) if piece]


def paragraphs(text: str) -> list[str]:
    """What blank lines part."""
    return [piece.strip() for piece in re.split(r"\n\s*\n", text) if piece.strip()]


def keyword(text: str) -> re.Pattern[str]:
    """Finds a keyword in any case: as a whole word, except beside characters of a script without spaces."""
    before = f"(?<!{_SPACED_CHARACTER})" if re.match(_SPACED_CHARACTER, text) else ""
    after = f"(?!{_SPACED_CHARACTER})" if re.match(_SPACED_CHARACTER, text[-1:]) else ""
    return re.compile(before + re.escape(text) + after, re.IGNORECASE)


def scripts(text: str) -> list[str]:
    """The script of every letter, by the first word of its Unicode name: LATIN, HIRAGANA, KATAKANA, CJK ..."""
    names = (unicodedata.name(unicodedata.normalize("NFKC", c)[:1], "") for c in text if c.isalpha())
    return [name.split(" ")[0].split("-")[0] for name in names]


def folded(text: str) -> str:
    """A text for comparing: width and case are levelled, white space is one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
