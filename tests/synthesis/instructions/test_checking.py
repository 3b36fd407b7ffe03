"""Every checker of a verifiable instruction with responses that follow it and such that do not, English and Japanese.

Expected values follow from IFEval's published semantics (arXiv 2311.07911, instruction_following_eval/instructions.py),
or from counting by hand where this package says that it differs.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_sdg.errors import RowError
from nemo_sdg.synthesis.instructions import KINDS, check, checked, language_spec, relaxed
from nemo_sdg.synthesis.languages import Language

EN, JA = (Language.load("package:conf/prompts", code) for code in ("en", "ja"))
ENGLISH = language_spec(EN)
JAPANESE = language_spec(JA)
FRENCH = "Le taux est le prix que la banque demande pour un prêt, et il change chaque année selon le marché."


def spec(kind: str, **parameters) -> dict:
    return {"kind": kind, **parameters}


CASES = [
    (spec("words", relation="at_least", count=3), ["one two three", "今日は", "a, b - c d"], ["one two", "今日", "-- -- --"]),
    (spec("words", relation="at_most", count=3), ["one two three", "晴れ。"], ["one two three four", "今日は晴れ"]),
    (spec("sentences", relation="at_least", count=2), ["One. Two.", "今日は晴れ。明日は雨。"], ["One, two.", "今日は、晴れ。"]),
    (spec("sentences", relation="at_most", count=1), ["Dr. Smith came.", "晴れ。"], ["One. Two.", "晴れ。雨。"]),
    (spec("characters", relation="at_most", count=5), ["abcde", " abcde ", "今日は晴れ"], ["abcdef", "今日は晴れ。"]),
    (spec("characters", relation="at_least", count=5), ["abcde", "今日は晴れ"], ["abcd ", "今日は晴"]),
    (spec("paragraphs", relation="exactly", count=2), ["a\nb\n\nc", "あ。\n\nい。"], ["a\nb", "a\n\nb\n\nc", "あ。い。"]),
    (
        spec("paragraph_start", count=2, paragraph=2, text="Fees"),
        ["Rates.\n\nFees are due.", "x\n\n“fees” y"], ["Fees.\n\nRates.", "a\n\nb\n\nFees", "Fees"],
    ),
    (spec("paragraph_start", count=1, paragraph=1, text="金利"), ["金利は上がる。"], ["この金利は", "金利\n\n金利"]),
    (spec("include", texts=["fee", "interest rate"]), ["The FEE and the interest rate."], ["The fee.", "fees, interest rates"]),
    (spec("include", texts=["金利"]), ["住宅金利は"], ["金 利"]),
    (spec("exclude", texts=["fee", "rate"]), ["Coffee is separate."], ["The rate.", "FEE"]),
    (spec("exclude", texts=["金利"]), ["利息です"], ["高金利です"]),
    (spec("keyword_frequency", text="fee", relation="at_least", count=2), ["fee, Fee"], ["fee fees"]),
    (spec("keyword_frequency", text="fee", relation="at_most", count=1), ["fee fees", "none"], ["fee fee"]),
    (spec("keyword_frequency", text="金利", relation="at_least", count=2), ["金利と金利"], ["金利"]),
    (spec("letter_frequency", text="z", relation="at_least", count=2), ["Zebra maze"], ["zoo"]),
    (spec("letter_frequency", text="z", relation="at_most", count=1), ["zoo", "none"], ["pizza"]),
    (spec("bullets", count=2), ["- a\n- b", "Intro\n* a\n  * b\nEnd", "・一つ\n・二つ"], ["- a", "- a\n- b\n- c", "**a**\n**b**", "---\n- a", "*a* and\n*b*"]),
    (spec("numbered", count=2), ["1. a\n2. b", "Intro\n 1) a\n 2) b", "１．一つ\n２．二つ"], ["1. a", "- a\n- b", "3.5 a\n2.5 b"]),
    (spec("json"), ['{"a": 1}', "[1]", '```json\n{"a": "い"}\n```', "```\n[]\n```"], ["{a: 1}", "3", '"text"', 'So: {"a": 1}', "[" * 9000]),
    (spec("highlights", count=2), ["*a b* and *c*", "**a** *b*", "*強調*と*語句*"], ["*a*", "* a\n* b", "** **x** **"]),
    (spec("sections", text="Section", count=2), ["Section 1\nx\nSection 2\ny", "## section 1: a\n**SECTION 2**"], ["Section 1", "See Section 1 and Section 2"]),
    (spec("sections", text="第", count=2), ["第1 概要\nあ\n第2 詳細", "第１\n第２"], ["第1だけ"]),
    (spec("placeholders", count=2), ["Dear [name], at [address]", "［氏名］と[住所]"], ["[name]", "name] [", "[]  []"]),
    (spec("title"), ["<<A title>>\ntext", "<<題名>>"], ["<A title>", "<<>>", "<< >>"]),
    (spec("postscript", text="P.S."), ["Text\nP.S. More", "Text\n**p. s.** more"], ["Text P.S. More", "P.S.", "PS more"]),
    (spec("postscript", text="追伸"), ["本文\n追伸 また明日", "本文\n追伸:また"], ["本文 追伸です", "追伸"]),
    (spec("two_answers"), ["a\n******\nb", "******\na\n******\nb\n******", "甲\n******\n乙"], ["a", "a\n******\nA", "a\n******\nb\n******\nc", "******"]),
    (spec("upper"), ["ALL CAPS 123.", "ÄÖ"], ["Not all", "123"]),
    (spec("lower"), ["all small 123.", "äö"], ["Not all", "123"]),
    (spec("capital_words", relation="at_least", count=2), ["NOTE this WELL", "NATO and EU"], ["I am A man", "NOTE this"]),
    (spec("capital_words", relation="at_most", count=1), ["NOTE this", "I am"], ["NOTE WELL"]),
    (spec("no_comma"), ["no pause here", "読点なしです。"], ["a, b", "あ、い", "あ，い"]),
    (spec("start_with", text="In short:"), ["In short: yes", "  in  short: yes"], ["Well, in short: yes"]),
    (spec("start_with", text="結論から言うと"), ["結論から言うと、はい"], ["では結論から言うと"]),
    (spec("end_with", text="That is all."), ["Text. That is all.", 'Text. "That is all."\n'], ["That is all. Or not.", "x that is all"]),
    (spec("end_with", text="以上です。"), ["本文。以上です。", "本文。「以上です。」"], ["以上です。では", "以上です"]),
    (spec("quotation"), ['"Text"', "“Text”", "「本文」\n"], ["Text", '"Text', '"', "「本文』"]),
    (spec("choice", texts=["Yes without any doubt.", "No."]), ["Yes without any doubt.", "I say: NO."], ["Maybe.", "Yes"]),
    (spec("choice", texts=["はい。", "いいえ。"]), ["いいえ。"], ["たぶん"]),
    (spec("repeat_prompt", text="What is it?"), ["What is it?\nIt is this.", "what  is it? x"], ["It is. What is it?"]),
    (spec("repeat_prompt", text="金利とは？"), ["金利とは？\nお金の値段です。"], ["お金の値段です。"]),
    (ENGLISH, ["The rate is the price that a bank asks for a loan, and it changes each year.", "Yes.", "42", "Run `xyz` and\n```\nпривет\n```\nit is done"], [FRENCH, "今日は晴れです。", "Это по-русски"]),
    (JAPANESE, ["今日は晴れです。", "PythonのDataFrameを使うと、表を簡単に扱えます。", "```python\nprint('all in code')\n```\nを実行します。", "123"], ["The rate is low.", "利率很低", "今日 is a nice word in English sentences"]),
    (spec("absent", what="email"), ["write to us", "a @ b"], ["to a.b@c-d.org", "ａ＠ｂ．ｃｏｍ"]),
    (
        spec("absent", what="phone"),
        ["on 2026-11-24 at 10:30", "1,234,567 yen", "sizes 100 200 300", "10.5 to 20.75"],
        ["call 03-1234-5678", "+1 (555) 123-4567", "(555) 123-4567", "090 1234 5678", "０３－１２３４－５６７８", "555-123-4567"],
    ),
    (spec("absent", what="url"), ["the site", "http is a protocol"], ["https://a.b/c", "see WWW.a.org"]),
]  # fmt: skip


@pytest.mark.parametrize(("instruction", "good", "bad"), CASES, ids=[instruction["kind"] for instruction, _, _ in CASES])
def test_known_answers(instruction: dict, good: list[str], bad: list[str]):
    for response in good:
        assert check(instruction, response), response
        assert check(instruction, response, strict=False), response
    for response in bad:
        assert not check(instruction, response), response


def test_every_kind_is_shown_and_there_are_more_than_twenty():
    assert {instruction["kind"] for instruction, _, _ in CASES} == set(KINDS)
    assert sum(kind.draw is not None for kind in KINDS.values()) >= 20


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_response_follows_nothing(kind: str):
    instruction = next(one for one, _, _ in CASES if one["kind"] == kind)
    assert not check(instruction, "") and not check(instruction, " \n", strict=False)


@pytest.mark.parametrize(
    ("instruction", "response"),
    [
        (spec("start_with", text="In short:"), "Sure, here it is:\nIn short: yes"),  # without the first line
        (spec("end_with", text="That is all."), "x. That is all.\nAnything else?"),  # without the last
        (spec("json"), 'Here:\n{"a": 1}\nDone'),  # without both
        (spec("lower"), "Sure:\nall small"),
        (spec("quotation"), '**"Text"**'),  # without asterisks
        (spec("words", relation="at_most", count=3), "Here you are, as you asked:\none two three"),
    ],
)
def test_loose_forgives_a_line_around_the_response_and_asterisks(instruction: dict, response: str):
    assert not check(instruction, response) and check(instruction, response, strict=False)


def test_the_relaxed_forms_are_ifevals():
    assert relaxed("*a*\nb\nc*") == ["*a*\nb\nc*", "b\nc*", "*a*\nb", "b", "a\nb\nc", "b\nc", "a\nb", "b"]
    assert relaxed("one") == ["one", "", "", "", "one", "", "", ""]


@given(st.text(max_size=200), st.sampled_from([instruction for instruction, _, _ in CASES]))
def test_what_is_strictly_followed_is_loosely_followed(response: str, instruction: dict):
    assert not check(instruction, response) or check(instruction, response, strict=False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (spec("word", relation="at_most", count=1), "unknown kind of instruction, found 'word'.*nearest is words"),
        ({}, "unknown kind"),
        (spec("words", count=1), "the parameters are others"),
        (spec("words", relation="at_most", count=1, more=2), "the parameters are others"),
        (spec("words", relation="fewer", count=1), "relation is unknown, found fewer"),
        (spec("words", relation="at_most", count="3"), "count has the wrong type"),
        (spec("words", relation="at_most", count=True), "count has the wrong type"),
        (spec("words", relation="at_most", count=-1), "count is out of range"),
        (spec("include", texts=["a", 3]), "texts is not a list of texts"),
        (spec("absent", what="fax"), "what is unknown"),
        (spec("paragraph_start", count=2, paragraph=3, text="x"), "there is no such paragraph"),
        (spec("paragraph_start", count=2, paragraph=0, text="x"), "paragraph is out of range"),
    ],
)
def test_a_spec_that_is_wrong_is_refused(row: dict, message: str):
    with pytest.raises(RowError, match=message):
        checked(row)
