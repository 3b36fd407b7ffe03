"""Yes or no, single texts, and the politeness that is taken off users' turns, in English and Japanese."""

from __future__ import annotations

import pytest

from nemo_sdg.synthesis.answers import plain, without_openers, yes_or_no
from nemo_sdg.synthesis.languages import Language

EN, JA = (Language.load("package:conf/prompts", code) for code in ("en", "ja"))


@pytest.mark.parametrize(
    ("answer", "language", "said"),
    [
        ("Yes", EN, True),
        ("yes, it does.", EN, True),
        ("**No.** It is off topic.", EN, False),
        ("NO", EN, False),
        ("\n\"Yes\"\nBecause", EN, True),
        ("Not sure", EN, None),
        ("Nothing", EN, None),
        ("Yesterday", EN, None),
        ("The answer is yes", EN, None),
        ("", EN, None),
        ("はい", JA, True),
        ("はい、満たしています。", JA, True),
        ("「いいえ」。理由は…", JA, False),
        ("いいえ。", JA, False),
        ("Yes", JA, True),
        ("わかりません", JA, None),
        ("はい", EN, None),
    ],
)
def test_yes_or_no(answer: str, language: Language, said: bool | None):
    assert yes_or_no(answer, language) is said


@pytest.mark.parametrize(
    ("answer", "language", "text"),
    [
        ("What is it?", EN, "What is it?"),
        ('"What is it?"', EN, "What is it?"),
        ("Question: What is it?", EN, "What is it?"),
        ("**Revised question:** What is it?", EN, "What is it?"),
        ("Here is the refined question:\n\nWhat is it?", EN, "What is it?"),
        ("```\nWhat is it?\n```", EN, "What is it?"),
        ('He said "no" and "yes"', EN, 'He said "no" and "yes"'),
        ('"A" or "B"', EN, '"A" or "B"'),
        ("Note: this stays", EN, "Note: this stays"),
        ("Given this function:\n\nf(x) = x", EN, "Given this function:\n\nf(x) = x"),
        ("質問：金利とは何ですか。", JA, "金利とは何ですか。"),
        ("「金利とは何ですか。」", JA, "金利とは何ですか。"),
        ("以下のとおりです：\n金利とは何ですか。", JA, "金利とは何ですか。"),
        ("", EN, ""),
    ],
)
def test_a_single_text(answer: str, language: Language, text: str):
    assert plain(answer, language) == text


@pytest.mark.parametrize(
    ("turn", "language", "text"),
    [
        ("Thank you for the explanation! How does it start?", EN, "How does it start?"),
        ("Thanks, but how does it start?", EN, "How does it start?"),
        ("That's great. Thanks a lot. and what then?", EN, "What then?"),
        ("Great answer! I see. Why?", EN, "Why?"),
        ("I appreciate the details, but what about cost?", EN, "What about cost?"),
        ("Thank you.", EN, ""),
        ("Thanks!", EN, ""),
        ("Why is it so? Thank you.", EN, "Why is it so? Thank you."),
        ("Greatest common divisors: how?", EN, "Greatest common divisors: how?"),
        ("Great ideas need time, do they not?", EN, "Great ideas need time, do they not?"),
        ("Great, and how do ideas grow?", EN, "How do ideas grow?"),
        ("How do I thank a colleague?", EN, "How do I thank a colleague?"),
        ("I see your point, but is it safe?", EN, "Is it safe?"),
        ("ありがとうございます。では、費用はどうですか。", JA, "費用はどうですか。"),
        ("なるほど。では次はどうしますか。", JA, "次はどうしますか。"),
        ("詳しいご説明ありがとうございます！費用は？", JA, "費用は？"),
        ("なるほど、費用はいくらですか？", JA, "費用はいくらですか？"),
        ("ありがとうございます。", JA, ""),
        ("費用はいくらですか。", JA, "費用はいくらですか。"),
        ("はいの意味は何ですか？", JA, "はいの意味は何ですか？"),
    ],
)
def test_polite_openers_are_taken_off(turn: str, language: Language, text: str):
    assert without_openers(turn, language) == text


@pytest.mark.parametrize("language", [EN, JA], ids=["en", "ja"])
def test_every_opener_of_the_lists_goes(language: Language):
    asked = "What does it cost?" if language is EN else "費用はいくらですか。"
    end = ". " if language is EN else "。"
    for opener in (*language.openers, *language.exclamations):
        assert without_openers(opener.capitalize() + end + asked, language) == asked, opener
