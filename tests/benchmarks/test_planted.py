"""What selection finds of what was planted where it is easily missed, and that it leaves alone what only looks like it.

Rows that are off the topic are found by a judge, not by a rule; they are planted where that stage is tested.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import planted
import pytest
from benchmarks.measuring import Table
from datasketch import MinHash

from nemo_sdg.config import Select
from nemo_sdg.quality import decide
from nemo_sdg.quality.duplicates import jaccard, signatures
from nemo_sdg.quality.personal import find
from nemo_sdg.quality.text import shingles, tokens
from nemo_sdg.records import Scored
from nemo_sdg.synthesis.brief import Brief
from nemo_sdg.synthesis.languages import Language
from nemo_sdg.synthesis.requirements import requirements

COUNT = 100
"""Texts of each kind, and as many that are harmless."""
Text = Callable[[random.Random, str], str]


def said(rng: random.Random, language: str, count: int = 8) -> str:
    """One sentence without a full stop."""
    return planted.joined(planted.words(rng, language, count), language).rstrip(".。")


def filled(form: str, low: int = 6, high: int = 12) -> Text:
    """A text with made-up sentences in the places of {}."""
    return lambda rng, language: form.format(*(said(rng, language, rng.randint(low, high)) for _ in range(form.count("{}"))))


def repeated(unit: Text, low: int, high: int, between: str) -> Text:
    return lambda rng, language: between.join(unit(rng, language) for _ in range(rng.randint(low, high)))


_SENTENCES = {
    "en": (
        "The bank is open on most days of the week.", "It is a rate that you may ask for.",
        "They were here before we came to the town.",
    ),
    "ja": ("銀行は平日に開いています。", "金利は年ごとに変わります。", "この商品は手数料がかかりません。"),
}  # fmt: skip
_plain, _stop = filled("{}"), {"en": ". ", "ja": "。"}


def cut(language: str, low: int, high: int) -> Text:
    """A text of so many characters, none of them a space or a full stop."""
    return lambda rng, _: re.sub(r"[ .。]", "", said(rng, language, 300))[: rng.randint(low, high)]


def real(language: str) -> Text:
    return lambda rng, _: " ".join(rng.choices(_SENTENCES[language], k=3))


MUST: dict[str, list[tuple[str, Text, Text]]] = {
    "en": [
        ("at most 20 words", filled("{}.", 5, 20), filled("{}.", 21, 40)),
        ("at least 3 sentences", repeated(filled("{}."), 3, 6, " "), repeated(filled("{}."), 1, 2, " ")),
        ("exactly 2 paragraphs", filled("{}.\n\n{}."), repeated(filled("{}."), 3, 5, "\n\n")),
        ("up to 300 characters", cut("en", 1, 300), cut("en", 301, 400)),
        ("contains: interest rate", filled("{} the interest rate {}."), filled("{} the rates of interest {}.")),
        ("never mention: Acme Bank", filled("{} acme {}."), filled("{} ACME bank {}.")),
        ("no e-mail addresses", filled("{} @ {}."), filled("{} jo.ann@example.com {}.")),
        ("no phone numbers", filled("{} on 2026-11-24 {}."), filled("{} (212) 555-0123 {}.")),
        ("no links", filled("{} and/or {}."), filled("{} https://example.com/a {}.")),
        ("starts with: In short", filled("In short, {}."), filled("{}, in short {}.")),
        ("ends with: Good luck!", filled("{}. Good luck!"), filled("Good luck! {}.")),
        ("valid JSON", filled('{{"a": "{}"}}'), filled("{{'a': '{}'}}")),
        ("language: English", real("en"), real("ja")),
    ],
    "ja": [
        ("60文字以内", cut("ja", 1, 60), cut("ja", 61, 90)),
        ("3文以上", repeated(filled("{}。"), 3, 6, ""), repeated(filled("{}。"), 1, 2, "")),
        ("ちょうど2段落", filled("{}。\n\n{}。"), repeated(filled("{}。"), 3, 5, "\n\n")),
        ("含む: 年利率", filled("{}年利率{}。"), filled("{}年の利率{}。")),
        ("触れない: あおば銀行", filled("{}あおば{}。"), filled("{}あおば銀行{}。")),
        ("メールアドレスなし", filled("{}＠{}。"), filled("{}taro@example.jp{}。")),
        ("電話番号なし", filled("{}2026年11月24日{}。"), filled("{}03-1234-5678{}。")),
        ("リンクなし", filled("{}／{}。"), filled("{} https://example.jp/a {}。")),
        ("書き出し: 要するに", filled("要するに、{}。"), filled("{}、要するに{}。")),
        ("結び: 以上です。", filled("{}。以上です。"), filled("以上です。{}。")),
        ("JSON形式", filled('{{"あ": "{}"}}'), filled("｛あ：{}｝")),
        ("言語: 日本語", real("ja"), real("en")),
    ],
}  # fmt: skip
"""A line of a brief, texts that keep to it, and texts that break it."""


@pytest.mark.parametrize("language", planted.LANGUAGES)
def test_every_broken_requirement_that_a_program_can_check_is_found_and_no_other(language: str):
    table, rng = Table(f"requirements of a brief, {language}: precision and recall"), random.Random(5)
    known = Language.load("package:conf/prompts", language)
    for line, keeps, breaks in MUST[language]:
        asked = Brief(field="banks", description="About banks.", language=language, must=(line,))
        check = requirements(asked, known)[-1]  # behind those of every brief
        assert check.spec is not None, line
        texts = [(breaks if number % 2 else keeps)(rng, language) for number in range(2 * COUNT)]
        found = {number for number, text in enumerate(texts) if not check.holds(text)}
        there = set(range(1, 2 * COUNT, 2))
        precision, recall = planted.rates(there, found)
        table.add(line, f"{precision:.3f} {recall:.3f}", "1.000 1.000")
        assert found == there, (line, [texts[number] for number in sorted(found ^ there)[:3]])
    table.show()


def conversations(rng: random.Random, language: str, secret: list[str]) -> Iterator[tuple[str, list[Scored]]]:
    """Where a leak may stand, and rows with one there."""

    def row(name: str, number: int, system: str, asked: str, answer: str) -> Scored:
        made = planted.row(f"{name}{number}", asked, answer)
        turns = ({"role": "system", "content": system}, *made.messages)
        return Scored(**{**vars(made), "messages": turns})

    def around(text: str = "") -> str:
        return f"{planted.text(rng, language, 20)} {text} {planted.text(rng, language, 20)}"

    yield "in the question", [row("q", n, around(), around(text), around()) for n, text in enumerate(secret)]
    yield "in the system text", [row("s", n, around(text), around(), around()) for n, text in enumerate(secret)]
    yield "in the response", [row("r", n, around(), around(), around(text)) for n, text in enumerate(secret)]


@pytest.mark.parametrize("language", planted.LANGUAGES)
def test_leaks_are_found_in_every_turn_and_paraphrases_are_none(language: str, tmp_path: Path):
    table, rng = Table(f"leaks by place, {language}: precision and recall"), random.Random(6)
    some = [planted.words(rng, language, 40) for _ in range(COUNT)]
    file = tmp_path / "held.jsonl"
    file.write_text("".join(json.dumps({"question": planted.joined(one, language)}) + "\n" for one in some))
    mark = "x" if language == "en" else "外"
    # Each sixth word is another, so that no 13 words stand in a row.
    other = [[word if n % 6 else word + mark for n, word in enumerate(one)] for one in some]
    paraphrases = [planted.joined(one, language) for one in other]
    harmless = [row for _, rows in conversations(rng, language, paraphrases) for row in rows]
    for place, rows in conversations(rng, language, [planted.joined(one, language) for one in some]):
        rows = [Scored(**{**vars(row), "id": f"leak {row.id}"}) for row in rows]
        decisions = decide([*harmless, *rows], Select(minimum={}, decontaminate=[str(file)]))
        there, found = {row.id for row in rows}, {decision.id for decision in decisions if not decision.kept}
        precision, recall = planted.rates(there, found)
        table.add(place, f"{precision:.3f} {recall:.3f}", "1.000 1.000")
        assert found == there, place
    table.show()


NEAR_MISSES: dict[str, Text] = {
    "CARD": lambda r, _: _off_by_one(planted.PERSONAL["CARD"][0](r)),
    "IBAN": lambda r, _: _off_by_one(planted.PERSONAL["IBAN"][0](r)),
    "MY_NUMBER": lambda r, _: _off_by_one(planted.PERSONAL["MY_NUMBER"][0](r)),
    "SSN": lambda r, _: f"{r.choice(('000', '666', '900'))}-{r.randint(10, 99)}-{r.randint(1000, 9999)}",
    "NINO": lambda r, _: f"{r.choice(('BG', 'GB', 'NK', 'ZZ'))} {r.randint(10, 99)} {r.randint(10, 99)} 12 C",
    "EMAIL": lambda r, _: f"{said(r, 'en', 1)}@host",
}
"""What has the form of personal data and is none: a wrong check digit, an area that is never given, no domain."""


def _off_by_one(number: str) -> str:
    return number[:-1] + str((int(number[-1]) + 1) % 10)


@pytest.mark.parametrize("language", planted.LANGUAGES)
def test_what_only_looks_like_personal_data_is_none(language: str):
    table, rng = Table(f"personal data among near misses, {language}: precision and recall"), random.Random(7)
    for kind, miss in NEAR_MISSES.items():
        there, found = set(range(1, 2 * COUNT, 2)), set()
        for number in range(2 * COUNT):
            what = rng.choice(planted.PERSONAL[kind])(rng) if number in there else miss(rng, language)
            text = f"{said(rng, language)} {what} {said(rng, language)}"
            found |= {number for span in find(text) if span[2] == kind}
        precision, recall = planted.rates(there, found)
        table.add(kind, f"{precision:.3f} {recall:.3f}", "1.000 1.000")
        assert found == there, kind
    table.show()


@pytest.mark.parametrize("language", planted.LANGUAGES)
def test_signatures_are_as_good_as_those_of_datasketch(language: str):
    """Both estimate the Jaccard similarity from 128 values: an error of about sqrt(J (1 - J) / 128) each."""
    table, rng = Table(f"similarity of edited texts, estimated from MinHash, {language}"), random.Random(8)
    errors: dict[str, list[float]] = {"rensa": [], "datasketch": []}
    apart = []
    for number in range(200):
        words = planted.words(rng, language, 100)
        pair = [planted.joined(one, language) for one in (words, planted.edited(rng, words, language, number % 20))]
        sets = [np.unique(shingles(tokens(text), 5)) for text in pair]
        true, ours = jaccard(*sets), signatures(sets)
        theirs = [MinHash(num_perm=128) for _ in sets]
        for sketch, hashes in zip(theirs, sets):
            sketch.update_batch([value.tobytes() for value in hashes])
        told = {"rensa": float((ours[0] == ours[1]).mean()), "datasketch": theirs[0].jaccard(theirs[1])}
        for name, estimate in told.items():
            errors[name].append(estimate - true)
        apart.append(abs(told["rensa"] - told["datasketch"]))
    for name, some in errors.items():
        measured = f"{np.mean(some):+.4f} {np.mean(np.abs(some)):.4f}"
        table.add(f"{name}: mean error, mean of its size", measured, "0 +- 0.01, <= 0.04")
        assert abs(np.mean(some)) < 0.01 and np.mean(np.abs(some)) < 0.04
    table.add("distance between the two, mean", f"{np.mean(apart):.4f}", "<= 0.05")
    assert np.mean(apart) < 0.05
    table.show()
