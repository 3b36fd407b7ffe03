"""Rows with what selection has to find in them, in English and in Japanese; the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable

from nemo_sdg.config import ATTRIBUTES
from nemo_sdg.records import Scored

LANGUAGES = ("en", "ja")
SYLLABLES = [consonant + vowel for consonant in "bcdfghklmnprst" for vowel in "aeio"]
_KANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをん"
_KANJI = "日本人大小中国学校生先時間年月火水木金土山川田村町市東西南北京都話読書見行来食飲車電気天雨雪花"


def words(rng: random.Random, language: str, count: int) -> list[str]:
    """Made-up words, of which a few are frequent, as in any text; in Japanese of two or three characters."""
    if language == "ja":
        return ["".join(rng.choices(_KANA + _KANJI, k=rng.choice((2, 2, 3)))) for _ in range(count)]
    made = []
    for _ in range(count):
        own = random.Random(int(rng.paretovariate(0.6)) % 20_000)
        made.append("".join(own.choices(SYLLABLES, k=own.choice((1, 2, 3)))))
    return made


def joined(some: list[str], language: str) -> str:
    """Words as a text with sentences."""
    between, stop = (" ", ". ") if language == "en" else ("", "。")
    sentences = [between.join(some[start : start + 12]) for start in range(0, len(some), 12)]
    return stop.join(sentence[:1].upper() + sentence[1:] for sentence in sentences) + stop.strip()


def text(rng: random.Random, language: str, count: int = 120) -> str:
    return joined(words(rng, language, count), language)


def row(name: str, prompt: str, response: str, sample: int = 0, scalar: float = 4.0, **extra: object) -> Scored:
    """A scored row whose attributes all have one value."""
    asked = ({"role": "user", "content": prompt},)
    scores = dict.fromkeys(ATTRIBUTES, scalar)
    return Scored(f"{name}#{sample}", name, sample, asked, response, scores=scores, extra=extra)


def edited(rng: random.Random, some: list[str], language: str, changes: int) -> list[str]:
    """The words with so many of them replaced by others."""
    result = list(some)
    for place in rng.sample(range(len(some)), changes):
        result[place] = words(rng, language, 1)[0] + ("x" if language == "en" else "外")
    return result


def disguised(some: str, language: str) -> str:
    """The same words in other case and width, with other punctuation."""
    if language == "ja":
        return some.replace("。", "！　").replace("日", "「日」")
    return some.upper().replace(". ", " -- ").replace(" ", "  ", 3)


def _luhn(rng: random.Random, prefix: str, length: int) -> str:
    digits = prefix + "".join(rng.choices("0123456789", k=length - len(prefix) - 1))
    for check in "0123456789":
        total = 0
        for index, digit in enumerate(map(int, reversed(digits + check))):
            doubled = 2 * digit if index % 2 else digit
            total += doubled // 10 + doubled % 10
        if total % 10 == 0:
            return digits + check
    raise AssertionError


def _my_number(rng: random.Random) -> str:
    digits = rng.choices(range(10), k=11)
    rest = sum(w * d for w, d in zip((6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2), digits)) % 11
    return "".join(map(str, digits)) + str(0 if rest < 2 else 11 - rest)


def _groups(digits: str, sign: str, *sizes: int) -> str:
    parts, rest = [], digits
    for size in sizes:
        parts.append(rest[:size])
        rest = rest[size:]
    return sign.join(parts)


_IBANS = (
    "GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "FR14 2004 1010 0505 0001 3M02 606", "NO93 8601 1117 947",
    "CH9300762011623852957", "ES91 2100 0418 4502 0005 1332", "NL91ABNA0417164300", "BE68 5390 0754 7034",
)  # fmt: skip
"""The examples in the register of ISO 13616."""


_WIDE = {ord(str(digit)): chr(0xFF10 + digit) for digit in range(10)}


def _digits(rng: random.Random, count: int) -> str:
    return str(rng.randint(2, 9)) + "".join(rng.choices("0123456789", k=count - 1))


PERSONAL: dict[str, tuple[Callable[[random.Random], str], ...]] = {
    "EMAIL": (
        lambda rng: f"{''.join(words(rng, 'en', 1))}.{rng.randint(1, 99)}@mail{rng.randint(1, 9)}.example.com",
        lambda rng: f"{''.join(words(rng, 'en', 1))}+tag@example.co.jp",
    ),
    "CARD": (
        lambda rng: _groups(_luhn(rng, "4", 16), " ", 4, 4, 4, 4),
        lambda rng: _luhn(rng, "55", 16),
        lambda rng: _groups(_luhn(rng, "37", 15), "-", 4, 6, 5),
    ),
    "IBAN": (lambda rng: rng.choice(_IBANS),),
    "MY_NUMBER": (lambda rng: _my_number(rng), lambda rng: _groups(_my_number(rng), " ", 4, 4, 4)),
    "SSN": (lambda rng: f"{rng.randint(100, 665)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}",),
    "NINO": (lambda rng: f"AB {rng.randint(10, 99)} {rng.randint(10, 99)} {rng.randint(10, 99)} C",),
    "PHONE": (
        lambda rng: f"({_digits(rng, 3)}) {_digits(rng, 3)}-{_digits(rng, 4)}",
        lambda rng: f"+1 {_digits(rng, 3)} {_digits(rng, 3)} {_digits(rng, 4)}",
        lambda rng: f"+44 20 {_digits(rng, 4)} {_digits(rng, 4)}",
        lambda rng: f"03-{_digits(rng, 4)}-{_digits(rng, 4)}",
        lambda rng: f"090－{_digits(rng, 4)}－{_digits(rng, 4)}".translate(_WIDE),
    ),
}
"""Personal data by kind, with check digits by another way of counting."""

HARMLESS: tuple[Callable[[random.Random], str], ...] = (
    lambda rng: f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
    lambda rng: f"{rng.randint(1, 9)},{rng.randint(100, 999)},{rng.randint(100, 999)}",
    lambda rng: f"{rng.randint(10, 99)} + {rng.randint(10, 99)} = {rng.randint(20, 198)}",
    lambda rng: f"192.168.{rng.randint(0, 255)}.{rng.randint(0, 255)}",
    lambda rng: f"978-3-16-{rng.randint(100000, 999999)}-0",
    lambda rng: f"version {rng.randint(1, 9)}.{rng.randint(0, 99)}.{rng.randint(0, 99)}",
    lambda rng: f"{rng.random():.15f}",
    lambda rng: f"2026{rng.randint(10, 12)}{rng.randint(10, 28)}T{rng.randint(10, 23)}{rng.randint(10, 59)}00Z",
    lambda rng: f"order {_digits(rng, 8)}",
    lambda rng: f"{_digits(rng, 3)} {_digits(rng, 3)} {_digits(rng, 3)}",
    lambda rng: "name @ host, @decorator, a@b",
    lambda rng: f"0x{rng.getrandbits(64):016x}",
    lambda rng: f"第{rng.randint(1, 99)}回、{rng.randint(1000, 9999)}円",
)
"""Digits and signs that are nobody's."""


def rates(planted: set, found: set) -> tuple[float, float]:
    """(precision, recall)."""
    right = len(planted & found)
    return right / len(found) if found else 1.0, right / len(planted) if planted else 1.0
