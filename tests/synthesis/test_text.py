"""Words, sentences, paragraphs and scripts: counted by hand here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_sdg.synthesis.text import folded, keyword, paragraphs, pieces, scripts, sentences, words


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("one two three", 3),
        ("It's 3.5 kg -- done.", 6),  # It, s, 3, 5, kg, done: runs of \w, as IFEval counts
        ("", 0),
        ("...", 0),
        ("今日は晴れ。", 5),
        ("コーヒーを飲む", 7),
        ("人々はAI modelを使う", 8),  # 人 々 は AI model を 使 う
        ("ภาษาไทย", 7),
        ("Straße naïve", 2),
    ],
)
def test_words(text: str, count: int):
    assert len(words(text)) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("Dr. Smith paid 3.50 to J. P. Jones. He left.", 2),
        ("He said “Stop.” She did.", 2),
        ("Use e.g. a saw. Fine", 2),
        ("1. First\n2. Second\n3. Third", 3),
        ("- a\n- b", 2),
        ("Wait... what?!", 2),
        ("今日は晴れ。明日は雨？そうです！", 3),
        ("「はい。」と言った。", 2),
        ("no end", 1),
        ("", 0),
        ("!!!", 0),
        ("The last one is Dr.", 1),
    ],
)
def test_sentences(text: str, count: int):
    assert len(sentences(text)) == count, sentences(text)


def test_paragraphs():
    assert paragraphs("a\nb\n\nc\n  \n\nd\n") == ["a\nb", "c", "d"]


@pytest.mark.parametrize(
    ("word", "text", "count"),
    [
        ("art", "Art is artful art.", 2),
        ("interest rate", "The Interest Rate, not interest rates", 1),
        ("AI", "生成AIを使う", 1),
        ("AI", "AIR", 0),
        ("機械", "工作機械の機械油", 2),
        ("C++", "C++ and C++17", 2),
        ("a.b", "axb a.b", 1),
    ],
)
def test_keywords_are_whole_words_where_words_are_spaced(word: str, text: str, count: int):
    assert len(keyword(word).findall(text)) == count


def test_scripts_and_folding():
    assert set(scripts("aé 日ア か－1")) == {"LATIN", "CJK", "KATAKANA", "HIRAGANA"}
    assert scripts("ｶﾞ") == ["KATAKANA", "KATAKANA"] or scripts("ｶ") == ["KATAKANA"]
    assert folded("ＡＢＣ　 d\nE") == "abc d e"


@given(st.lists(st.sampled_from(["alpha", "be", "c3"]), max_size=20))
def test_as_many_words_as_were_joined(parts: list[str]):
    assert words(" ".join(parts)) == parts


@pytest.mark.parametrize("most", [1, 3, 7, 20, 50])
def test_pieces_lose_no_word_and_are_none_too_long(most: int):
    text = "One two. Dr. Three four five six?\n\nSeven 8.5 nine.\nTen 一二三四。五六七八九十。 " * 6
    cut = pieces(text, most)
    assert [word for piece in cut for word in words(piece)] == words(text)
    assert all(0 < len(words(piece)) <= most for piece in cut) and len(cut) > 2


def test_pieces_end_where_a_paragraph_a_sentence_or_a_word_ends():
    assert pieces("a b c.\n\nd e f. g h", 7) == ["a b c.\n\nd e f.", "g h"]
    assert pieces("a b c d.\n\ne f. g h", 7) == ["a b c d.", "e f. g h"], "a paragraph's end comes first"
    assert pieces("a b c. d e f g h", 5) == ["a b c.", "d e f g h"]
    assert pieces("Ask Dr. Who now please", 3) == ["Ask Dr. Who", "now please"]
    assert pieces("あいう。えお", 4) == ["あいう。", "えお"]
    assert pieces("あいうえお", 2) == ["あい", "うえ", "お"]
    assert pieces("a 8.5 b", 2) == ["a", "8.5", "b"], "a decimal's point ends nothing"
    assert pieces("short", 5) == ["short"]
