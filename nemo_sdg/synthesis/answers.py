"""What a model's answer says: one text without what a chat model puts around it, or yes or no."""

from __future__ import annotations

import re
from typing import Iterable

from nemo_sdg.synthesis.languages import Language
from nemo_sdg.synthesis.text import folded

_QUOTES = {'"': '"', "“": "”", "「": "」", "『": "』", "'": "'", "‘": "’", "«": "»"}
_SENTENCE = re.compile(r"""^.*?(?:[.!?…]+["'”’)]*(?=\s|$)|[。！？]+[」』）)]*|\n|$)""", re.DOTALL)
_CLAUSE = re.compile(r"^[^,，、;；:：.!?。！？\n—–]*?(?:[,，、;；:：—–]|\s-\s)\s*")
_PAUSES = ("", *",.!?;:—–-…，、。！？；：\n")
_EDGE = "*_#`>\"'“”「」『』()（）[]【】 \t\n"


def yes_or_no(answer: str, language: Language) -> bool | None:
    """What the first word of the answer says; None where it says neither."""
    start = folded(answer).strip(_EDGE)
    for sense, beginnings in ((True, language.positive), (False, language.negative)):
        for beginning in beginnings:
            if start.startswith(folded(beginning)) and _ends(start[len(folded(beginning)) :], beginning):
                return sense
    return None


_CHOICE = re.compile(
    r"(?:(?:response|answer|回答|応答) ?([ab])(?![a-z0-9])"
    # The letter alone: "a better one would be ..." begins with the article.
    r"|([ab])(?=$|[^\w\s]|[^\x00-\x7f]|\s(?:is|was|wins|because|since|[^a-z])))"
)


def choice(answer: str, ties: Iterable[str]) -> str | None:
    """Which of two responses the beginning of an answer names: a, b or tie; None where it names none.

    Args:
        ties: how an answer begins that finds neither better.
    """
    start = folded(answer.strip(_EDGE).partition("\n")[0]).strip(_EDGE)
    found = _CHOICE.match(start)
    if found:
        return found[1] or found[2]
    words = [folded(word) for word in ties]
    return "tie" if any(start.startswith(word) and _ends(start[len(word) :], word) for word in words) else None


def plain(answer: str, language: Language) -> str:
    """A single text that was asked for, without a heading line, a label, a fence or quotes around it."""
    text = answer.strip()
    fence = re.fullmatch(r"```\w*\n(.*?)\n?```", text, re.DOTALL)
    text = fence[1].strip() if fence else text
    first, _, rest = text.partition("\n")
    announced = folded(first).lstrip("*").startswith(tuple(map(folded, language.prefaces)))
    if rest.strip() and announced and first.rstrip("* ").endswith((":", "：")):
        text = rest.strip()
    names = "|".join(sorted(map(re.escape, language.labels), key=len, reverse=True))
    text = re.sub(rf"^[*_#【\[ ]*(?:{names})[*_】\] ]*[:：][*_ ]*", "", text, count=1, flags=re.IGNORECASE).strip()
    return unquoted(text)


def unquoted(text: str) -> str:
    """The text without a pair of quotes or bold marks around the whole of it."""
    while len(text) > 1:
        if text.startswith("**") and text.endswith("**") and len(text) > 4 and "**" not in text[2:-2]:
            text = text[2:-2].strip()
        elif _QUOTES.get(text[0]) == text[-1] and not set(text[1:-1]) & {text[0], text[-1]}:
            text = text[1:-1].strip()
        else:
            break
    return text


def without_openers(text: str, language: Language) -> str:
    """A user's turn without polite beginnings, as the report removes them from dialogues (arXiv 2406.11704, 3.2.2).

    Whole sentences go. Of a sentence that asks something, and of one that goes on after a comma, only the opener goes.
    """
    text = text.strip()
    while (cut := _opener(text, language)) is not None:
        text = cut
    return text


def _opener(text: str, language: Language) -> str | None:
    """The text without its first opener; None where it begins with none."""
    start = text.lower().replace("’", "'")
    polite = any(start.startswith(one) and _ends(start[len(one) :], one) for one in language.openers)
    alone = (start[len(one) :].lstrip(" ") for one in language.exclamations if start.startswith(one))
    if not polite and not any(rest[:1] in _PAUSES for rest in alone):
        return None
    sentence = _SENTENCE.match(text)[0]
    clause = _CLAUSE.match(sentence)
    means = sentence[clause.end() :] if clause else ""
    if means and (language.cased and _goes_on(means, language) or _asks(sentence)):
        return _begun(means + text[len(sentence) :], language)
    if _asks(sentence):  # "great way to do this?" is a question, and no thanks
        return None
    return _begun(text[len(sentence) :], language)


def _goes_on(clause: str, language: Language) -> bool:
    """Whether a clause after the opener's is what the user means: joined by a word such as `but`."""
    return clause.lower().split(" ")[0] in language.connectives


def _begun(text: str, language: Language) -> str:
    """The rest of a turn, begun as a sentence is."""
    text = text.strip()
    for word in language.connectives:
        if text.lower().startswith(word) and not (language.cased and text[len(word) : len(word) + 1].isalpha()):
            text = text[len(word) :].lstrip(" ,，、")
            break
    return text[:1].upper() + text[1:] if language.cased else text


def _asks(sentence: str) -> bool:
    return sentence.rstrip(" \n\"'”’」』)）").endswith(("?", "？"))


def _ends(rest: str, word: str) -> bool:
    """Whether the word that was found is not the beginning of a longer one."""
    return not word[-1:].isascii() or not rest[:1].isalnum()
