"""Personal data that a program can tell by its form: what it is and where it stands.

Numbers with a check digit count only when it is right. Digits and signs of full width count as plain ones.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from nemo_sdg.config import Select
from nemo_sdg.quality.rules import PERSONAL
from nemo_sdg.records import Scored

Span = tuple[int, int, str]
"""Begin and end in the text, and the kind."""

_WIDE = {0xFF01 + offset: chr(0x21 + offset) for offset in range(94)}  # every sign of ASCII in its full width
_WIDE |= {ord(dash): "-" for dash in "‐‑‒–—―−－"} | {0x3000: " ", 0xA0: " "}
_PLAIN = np.arange(1 << 16, dtype=np.uint32)
_PLAIN[list(_WIDE)] = [ord(plain) for plain in _WIDE.values()]
"""One character for one, so that a span in the result is a span in the text; by code point, the last of them for all
behind."""
_LONG_VOWEL = re.compile(r"(?<=\d)ー(?=\d)")
"""A hyphen between digits alone: at the end of a word (ナンバー) it is a vowel, and what follows begins anew."""

_HINT = re.compile(r"\d(?:[ ().-]{0,2}\d){3}", re.ASCII)
_WIDEST = 9
"""From the first to the last of the four."""
_BEFORE, _BEHIND = 16, 64
"""All but e-mail addresses have four digits in a row somewhere, at most so many characters before them and behind."""
_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])", re.ASCII)
_IBAN = re.compile(r"(?<![A-Z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_DIGITS = re.compile(r"(?<![\w.,/-])\d(?:[ -]?\d){11,18}(?![\w/-])(?!\.\d)", re.ASCII)
_CARD = re.compile(r"\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(\1\d{1,3})?|\d{4}([ -])\d{6}\3\d{4,5}", re.ASCII)
_ISSUERS = re.compile(  # Visa, Mastercard, American Express, Diners, JCB, Discover and UnionPay, by prefix and length
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|35\d{14}|6(?:011|2\d\d|4[4-9]\d|5\d\d)\d{12,15}"
)
_TWELVE = re.compile(r"\d{12}|\d{4}([ -])\d{4}\1\d{4}", re.ASCII)
_SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])", re.ASCII)
_NINO = re.compile(
    r"(?<![A-Za-z0-9])(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]"
    r" ?\d\d ?\d\d ?\d\d ?[A-D](?![A-Za-z0-9])"
)
_PHONE = re.compile(
    r"(?<![\w+.,/-])(?:"
    r"\+[1-9](?:[ .()-]{0,2}\d){7,14}"  # international, E.164
    r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}"  # North American, NANP
    r"|0\d{1,4}-\d{1,4}-\d{3,4}|0\d{1,4}\(\d{1,4}\)\d{3,4}|\(0\d{1,4}\) ?\d{1,4}-\d{4}|0[5789]0\d{8}"  # Japanese
    r")(?![\w-]|[./]\d)",
    re.ASCII,
)


def find(text: str) -> list[Span]:
    """The spans of personal data, in order and apart from each other."""
    plain, digits = _plain(text)
    found = [(match.start(), match.end(), "EMAIL") for match in _EMAIL.finditer(plain)] if "@" in plain else []
    for begin, stop in _windows(plain, digits):
        for finder in _finders(plain, digits[bisect_left(digits, begin) : bisect_left(digits, stop)]):
            for start, end, kind in finder(plain, begin, stop):
                if all(end <= other[0] or other[1] <= start for other in found):
                    found.append((start, end, kind))
    return sorted(found)


def spans_of(text: str, settings: Select) -> list[Span]:
    """What `find` finds; with presidio also what that finds beside it."""
    return _spans(text, settings.pii_engine, settings.pii_model)


def _spans(text: str, engine: str, model: str) -> list[Span]:
    found = find(text)
    if engine == "presidio":
        from nemo_sdg.quality.presidio import finder

        for span in finder(model)(text):
            if all(span[1] <= start or end <= span[0] for start, end, _ in found):
                found.append(span)
    return sorted(found)


def redact(text: str, spans: Sequence[Span]) -> tuple[str, dict[str, int]]:
    """The text with each span replaced by its kind in brackets, for example `[EMAIL]`, and how many of each kind."""
    for start, end, kind in reversed(spans):
        text = f"{text[:start]}[{kind}]{text[end:]}"
    return text, dict(sorted(Counter(kind for _, _, kind in spans).items()))


def redacted(row: Scored, settings: Select) -> Scored:
    """The row as it may be kept: under `redact` without personal data in its response, else as it is."""
    if settings.pii != "redact":
        return row
    response, counts = redact(row.response, spans_of(row.response, settings))
    if not counts:
        return row
    # The tokens were those of the text as it was.
    return replace(row, response=response, response_token_ids=(), extra={**row.extra, "redacted": counts})


def personal(row: Scored, settings: Select) -> str | None:
    """Why a row with personal data is dropped; under `redact` only what stands in the prompt drops it.

    A prompt is never rewritten: its answer and its id belong to the text as it was asked.
    """
    if settings.pii == "off":
        return None
    parts = [("prompt", turn["content"]) for turn in row.messages]
    if settings.pii == "drop":
        parts.append(("response", row.response))
    for name, text in parts:
        kind = _first(text, settings.pii_engine, settings.pii_model)
        if kind is not None:
            return f"{PERSONAL} {name}: {kind}"
    return None


@lru_cache(maxsize=32)  # the answers to a prompt come one after the other
def _first(text: str, engine: str, model: str) -> str | None:
    return next((kind for _, _, kind in _spans(text, engine, model)), None)


def _plain(text: str) -> tuple[str, list[int]]:
    """The text with plain signs, and where its digits stand."""
    if text.isascii():
        points = np.frombuffer(text.encode(), np.uint8)
    else:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        points = _PLAIN.take(points, mode="clip")
        text = _LONG_VOWEL.sub("-", points.tobytes().decode("utf-32-le", "surrogatepass"))
    return text, np.flatnonzero(points - points.dtype.type(ord("0")) < 10).tolist()


def _windows(text: str, digits: list[int]) -> Iterator[tuple[int, int]]:
    """The parts of a text that can hold numbers, for a look at each character costs more than all the rest."""
    begin, stop, behind = 0, -1, 0
    for first, last in zip(digits, digits[3:]):
        match = _HINT.match(text, first) if first >= behind and last - first <= _WIDEST else None
        if match is None:
            continue
        behind = match.end()
        if match.start() - _BEFORE > stop:
            if stop >= 0:
                yield begin, stop
            begin = max(match.start() - _BEFORE, 0)
        stop = match.end() + _BEHIND
    if stop >= 0:
        yield begin, stop


def _ibans(text: str, begin: int, stop: int) -> Iterator[Span]:
    for match in _IBAN.finditer(text, begin, stop):
        end = match.end()
        while end - match.start() >= 15:  # a word in capitals may follow; the shortest IBAN (Norway) has 15 characters
            if _is_iban(text[match.start() : end].replace(" ", "")):
                yield match.start(), end, "IBAN"
                break
            end = text.rfind(" ", match.start(), end)


def _numbers(text: str, begin: int, stop: int) -> Iterator[Span]:
    for match in _DIGITS.finditer(text, begin, stop):
        digits = re.sub(r"[ -]", "", match[0])
        if _CARD.fullmatch(match[0]) and _ISSUERS.fullmatch(digits) and luhn(digits):
            yield match.start(), match.end(), "CARD"
        elif _TWELVE.fullmatch(match[0]) and my_number(digits):
            yield match.start(), match.end(), "MY_NUMBER"


def _phones(text: str, begin: int, stop: int) -> Iterator[Span]:
    for match in _PHONE.finditer(text, begin, stop):
        digits = re.sub(r"\D", "", match[0])
        if 8 <= len(digits) <= 15 if match[0][0] == "+" else 10 <= len(digits) <= 11:
            yield match.start(), match.end(), "PHONE"


def _nationals(text: str, begin: int, stop: int) -> Iterator[Span]:
    for pattern, kind in ((_SSN, "SSN"), (_NINO, "NINO")):
        for match in pattern.finditer(text, begin, stop):
            yield match.start(), match.end(), kind


def _finders(text: str, digits: list[int]) -> list[Callable[[str, int, int], Iterator[Span]]]:
    """Those that may find anything among these digits; of two spans that overlap that of the earlier finder counts."""

    def near(count: int, widest: int) -> bool:
        """Whether so many of them stand anywhere with at most so far from the first to the last."""
        return any(last - first <= widest for first, last in zip(digits, digits[count - 1 :]))

    found = [_ibans] if any("A" <= text[place - 1] <= "Z" for place in digits if place) else []
    found += [_numbers] if near(12, 22) else []
    found += [_nationals] if near(6, 7) else []
    return found + ([_phones] if near(8, 21) else [])


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = (2 * int(digit) for digit in digits[-2::-2])
    return (sum(int(digit) for digit in digits[-1::-2]) + sum(x - 9 if x > 9 else x for x in doubled)) % 10 == 0


def my_number(digits: str) -> bool:
    """Whether the last of twelve digits is the check digit of a Japanese individual number.

    Ordinance 85 of 2014 of the Ministry of Internal Affairs and Communications, article 5.
    """
    total = sum(int(digit) * (n + 1 if n <= 6 else n - 5) for n, digit in enumerate(digits[-2::-1], start=1))
    return int(digits[-1]) == (0 if total % 11 <= 1 else 11 - total % 11)


def _is_iban(code: str) -> bool:
    """ISO 13616: the first four characters moved to the end, letters as 10 to 35, is 1 modulo 97."""
    return 15 <= len(code) <= 34 and int("".join(str(int(char, 36)) for char in code[4:] + code[:4])) % 97 == 1
