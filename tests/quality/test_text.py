"""Tokens, n-grams and shingles: what counts as one, and what counts as the same."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_sdg.quality.text import hash64, ngrams, shingles, tokens


def same(one: str, other: str) -> bool:
    return tokens(one).words_T.tolist() == tokens(other).words_T.tolist()


@pytest.mark.parametrize(
    "text, all_tokens, words, unspaced",
    [
        ("", 0, 0, False),
        (" \n\t", 0, 0, False),
        ("Hello, world!", 4, 2, False),
        ("x = 3+4", 5, 3, False),
        ("don't", 3, 2, False),
        ("caf\u00e9 cafe\u0301", 2, 2, False),
        ("हिन्दी में", 2, 2, False),
        ("한국어 문장", 2, 2, False),
        ("東京は雨。", 5, 4, True),
        ("コーヒー", 4, 4, True),
        ("ภาษาไทย", 7, 7, True),
        ("ພາສາ", 4, 4, True),
        ("ភាសា", 4, 4, True),
        ("မြန်မာ", 6, 6, True),
        ("GPU を使う", 4, 4, True),
        ("use the 東 button", 4, 4, False),
        ("🙂", 1, 0, False),
        ("\U000e0041", 0, 0, False),
    ],
)
def test_what_a_token_is(text: str, all_tokens: int, words: int, unspaced: bool):
    cut = tokens(text)
    assert (len(cut.hashes_T), len(cut.words_T), cut.unspaced) == (all_tokens, words, unspaced)


def test_case_width_and_marks_do_not_count_among_words_and_letters_do():
    assert same("The Cat, sat.", "the cat sat") and same("ＡＢＣ １２３", "abc 123") and same("ｶﾞｽ", "ガス")
    assert same("straße", "STRASSE")
    assert not same("the cat sat", "the cats at") and not same("ab", "ba") and not same("a b", "ab")
    assert tokens("3 + 4").hashes_T.tolist() != tokens("3 - 4").hashes_T.tolist()


def test_a_token_has_its_hash_wherever_it_stands_and_on_every_machine():
    long = tokens("x " * 5000 + "needle")
    assert long.hashes_T[-1] == tokens("needle").hashes_T[0] and len(set(long.hashes_T[:5000].tolist())) == 1
    assert tokens("needle 針").hashes_T.tolist() == [1306455023730166828, 9897026405233072367]
    assert hash64("needle") == -5098788658658437770


def test_ngrams_are_windows_and_know_their_order():
    cut = tokens("a b c a b c").hashes_T
    grams = ngrams(cut, 3)
    assert len(grams) == 4 and grams[0] == grams[3] and len(set(grams.tolist())) == 3
    assert ngrams(cut, 6).shape == (1,) and ngrams(cut, 7).shape == (0,) and ngrams(cut[:0], 1).shape == (0,)
    assert ngrams(tokens("a b").hashes_T, 2) != ngrams(tokens("b a").hashes_T, 2)
    words = tokens(" ".join(map(str, range(3000)))).hashes_T
    assert len(np.unique(ngrams(words, 5))) == 2996


def test_a_shingle_is_n_words_or_twice_as_many_characters_and_a_short_text_is_one():
    assert len(shingles(tokens("one two three four five six"), 5)) == 2
    assert len(shingles(tokens("一二三四五六七八九十百千"), 5)) == 3
    assert len(shingles(tokens("one two"), 5)) == 1 and len(shingles(tokens(""), 5)) == 0
