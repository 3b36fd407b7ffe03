"""Lines of a brief as checks: what a program recognises, what goes to the judge, and what each says of a response."""

from __future__ import annotations

import pytest

from nemo_sdg.errors import ConfigError, RowError
from nemo_sdg.synthesis.brief import Brief
from nemo_sdg.synthesis.forms import recognised
from nemo_sdg.synthesis.languages import Language
from nemo_sdg.synthesis.requirements import Questions, Requirement, requirements

FOLDER = "package:conf/prompts"
EN, JA = (Language.load(FOLDER, code) for code in ("en", "ja"))


def brief(language: str = "en", **more) -> Brief:
    return Brief(field="banking", description="About banks.", language=language, **more)


MUST = [
    ("at most 3 words", EN, "one two three.", "one two three four"),
    ("fewer than 3 words", EN, "one two", "one two three"),
    ("At least 2 sentences.", EN, "One. Two.", "One."),
    ("no more than 1 paragraph", EN, "a\nb", "a\n\nb"),
    ("up to 1,000 characters", EN, "x" * 1000, "x" * 1001),
    ("exactly 2 paragraphs", EN, "a\n\nb", "a"),
    ("more than 2 words", EN, "one two three", "one two"),
    ("contains: fee, rate", EN, "The fee and the rate.", "The fee."),
    ('include: "annual rate"', EN, "an annual rate", "annual"),
    ("never mention: Acme, Globex", EN, "Some bank.", "globex"),
    ("do not mention: Acme", EN, "Some bank.", "ACME"),
    ("no e-mail addresses", EN, "write to us", "a@b.org"),
    ("has no phone numbers", EN, "call us", "03-1234-5678"),
    ("no links", EN, "the site", "http://a.b"),
    ("language: English", EN, "It is a low rate.", "金利が低い。"),
    ("starts with: In short", EN, "In short, yes", "Yes"),
    ("ends with: Good luck!", EN, "Do it. Good luck!", "Do it."),
    ("ends with: Good luck.", EN, "Do it. Good luck.", "Do it. Good luck"),
    ("結び: 以上です。", JA, "はい。以上です。", "以上です。はい。"),
    ("valid JSON", EN, "{}", "text"),
    ("3文字以内", JA, "晴れ。", "今日は晴れ"),
    ("2文以上", JA, "一つ。二つ。", "一つ。"),
    ("5字未満", JA, "晴れです", "今日は晴れ"),
    ("ちょうど2段落", JA, "一\n\n二", "一"),
    ("含む: 金利、期間", JA, "金利と期間", "金利"),
    ("触れない：ABC銀行", JA, "ある銀行", "ABC銀行は"),
    ("メールアドレスなし", JA, "ご連絡ください", "a@b.org"),
    ("電話番号を含まない", JA, "お電話ください", "電話は03-1234-5678です"),
    ("言語: 日本語", JA, "今日は晴れ", "It is sunny"),
    ("language: Japanese", JA, "今日は晴れ", "It is sunny"),
    ("JSON形式", JA, "[]", "文"),
]


@pytest.mark.parametrize(("line", "language", "good", "bad"), MUST, ids=[line for line, *_ in MUST])
def test_lines_that_a_program_checks(line: str, language: Language, good: str, bad: str):
    check = requirements(brief(language.code, must=(line,)), language)[-1]
    assert check.spec is not None and check.reason == f"must: {line}"
    assert check.holds(good) is True and check.holds(bad) is False


MUST_NOT = [
    ("e-mail addresses", EN, "write to us", "a@b.org"),
    ("phone numbers", EN, "call us", "(555) 123-4567"),
    ("mentions: Acme", EN, "Some bank.", "Acme"),
    ("mentions: Acme, Bolt", EN, "Some bank.", "Bolt alone"),
    ("触れる: 競合、価格", JA, "当社のみ", "価格のこと"),
    ("more than 3 words", EN, "one two three", "one two three four"),
    ("メールアドレス", JA, "ご連絡ください", "a@b.org"),
    ("4文字以上", JA, "晴れだ", "今日は晴れ"),
]


@pytest.mark.parametrize(("line", "language", "good", "bad"), MUST_NOT)
def test_what_must_not_be(line: str, language: Language, good: str, bad: str):
    check = requirements(brief(language.code, must_not=(line,)), language)[-1]
    assert check.spec is not None and check.reason == f"must not: {line}"
    assert check.holds(good) is True and check.holds(bad) is False


@pytest.mark.parametrize("line", ["no e-mail addresses", "never mention: Acme"])
def test_a_double_negation_is_refused(line: str):
    with pytest.raises(ConfigError, match="must_not: the line says no twice.*move the line to must"):
        requirements(brief(must_not=(line,)), EN)


@pytest.mark.parametrize(
    "line", ["names the assumptions", "at most a few words", "short", "language: Klingon", "contains: ,", "says no"]
)
def test_other_lines_are_for_the_judge(line: str):
    assert recognised(line, EN) == (None, True)
    check = requirements(brief(must=(line,)), EN)[-1]
    assert check.spec is None and check.holds("anything") is None


@pytest.mark.parametrize("language", [EN, JA], ids=["en", "ja"])
def test_the_judge_is_asked_in_the_briefs_language_and_answers(language: Language):
    told = brief(language.code, must=("is calm",), must_not=("gives a diagnosis",))
    _, topic, must, must_not = requirements(told, language)
    questions = Questions(FOLDER, told, language)
    turns = [{"role": "user", "content": "How are you?"}]
    for check, line in ((topic, "banking"), (must, "is calm"), (must_not, "gives a diagnosis")):
        text = questions.ask(check, turns, "Fine {{ line }}.")
        assert line in text and "How are you?" in text and "Fine {{ line }}." in text
        assert ("回答" in text) == (language is JA)
    yes, no = ("Yes.", "No, it does not.") if language is EN else ("はい。", "いいえ、違います。")
    for check, good, bad in ((topic, yes, no), (must, yes, no), (must_not, no, yes)):
        assert questions.answered(check, good) is True and questions.answered(check, bad) is False
        assert questions.answered(check, "Hm.") is None


def test_language_and_topic_come_first_and_each_has_a_reason_of_its_own():
    checks = requirements(brief("ja", must=("is calm",), must_not=("is rude",)), JA)
    reasons = ["not in the language of the brief", "off topic", "must: is calm", "must not: is rude"]
    assert [check.reason for check in checks] == reasons
    assert checks[0].holds("It is English.") is False and checks[0].holds("日本語です。") is True


def test_rows_and_back():
    for check in requirements(brief(must=("at most 3 words", "is calm"), must_not=("links", "is rude")), EN):
        assert Requirement.from_row(check.to_row()) == check


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "line is missing"),
        ({"line": "x", "reason": "y"}, "wanted is missing"),
        ({"line": "x", "reason": "y", "wanted": True}, "no such question"),
        ({"line": "x", "reason": "y", "wanted": True, "question": "other"}, "no such question, found 'other'"),
        ({"line": "x", "reason": "y", "wanted": True, "spec": {"kind": "x"}}, "unknown kind of instruction"),
        ({"line": "x", "reason": "y", "wanted": True, "spec": "words"}, "the spec is not a mapping"),
    ],
)
def test_a_row_that_is_no_requirement(row: dict, message: str):
    with pytest.raises(RowError, match=message):
        Requirement.from_row(row)
