"""Measures of variety and likeness against known answers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import planted
import pytest

from nemo_sdg.config import Select
from nemo_sdg.quality import Selector
from nemo_sdg.quality.text import ngrams, tokens
from nemo_sdg.quality.variety import compare, distinct, likeness, nearest, self_bleu


def cut(*texts: str) -> list[np.ndarray]:
    return [tokens(text).hashes_T for text in texts]


def test_distinct():
    (text,) = cut("a b a b a")
    assert distinct(text) == 2 / 5 and distinct(ngrams(text, 2)) == 2 / 4 and distinct(ngrams(text, 3)) == 2 / 3
    assert distinct(text[:0]) == 0.0


def test_distinct_is_of_as_many_tokens_on_both_sides():
    told = compare([tokens("a a a b c d")], [tokens("e f")])
    assert told["before"]["distinct_1"] == 0.5 and told["after"]["distinct_1"] == 1.0  # of `a a` and `e f`


def test_self_bleu_of_equal_texts_is_1_and_of_foreign_ones_0():
    assert self_bleu(cut("a b c d e", "a b c d e", "a b c d e")) == pytest.approx(1.0)
    assert self_bleu(cut("a b c d e", "f g h i j")) == 0.0
    assert self_bleu(cut("a b c d e")) == 0.0 and self_bleu([]) == 0.0 and self_bleu(cut("", "a")) == 0.0
    assert self_bleu(cut("a", "a")) == pytest.approx(1.0)  # of its one n-gram


def test_self_bleu_by_hand():
    """`a b c d e f` against `a b c d x`: 4/6, 3/5, 2/4, 1/3. The other way: 4/5, 3/4, 2/3, 1/2, and 5 for 6 tokens."""
    one = (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    other = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * np.exp(1 - 6 / 5)
    assert self_bleu(cut("a b c d e f", "a b c d x")) == pytest.approx((one + other) / 2)


def test_self_bleu_clips_to_the_count_in_another_text():
    """`a a b` against `a b`: of three words two are there; pairs: `a b` of two; no triple, so 0. `a b` has both."""
    assert self_bleu(cut("a a b", "a b")) == pytest.approx((0 + np.exp(1 - 3 / 2)) / 2)
    assert self_bleu(cut("a a b", "a b", "a a b")) == pytest.approx((1 + np.exp(1 - 3 / 2) + 1) / 3)


def test_nearest_neighbours():
    rng = random.Random(1)
    texts = [tokens(planted.text(rng, "en", 80)) for _ in range(20)]
    assert nearest(texts) < 0.2 and nearest([*texts, *texts]) == 1.0
    assert nearest(texts[:1]) == 0.0 and nearest([tokens("")] * 3) == 0.0


def test_a_selection_that_narrows_variety_is_flagged_with_what_says_so():
    rng = random.Random(1)
    texts = [tokens(planted.text(rng, "en", 60)) for _ in range(60)]
    assert compare(texts, texts[:30])["narrowed"] == []
    assert compare(texts, texts[:3] * 10)["narrowed"] == ["distinct_2", "self_bleu", "nearest"]
    same = compare(texts, texts)
    assert same["before"] == same["after"]
    assert compare(texts[:3] * 10, texts[:30])["narrowed"] == []  # what widens it is not


@pytest.mark.parametrize("language", planted.LANGUAGES)
def test_the_classifier_tells_apart_what_differs_and_not_what_does_not(language: str):
    rng = random.Random(8)
    texts = [tokens(planted.text(rng, language, 60)) for _ in range(200)]
    apart = [tokens(planted.text(rng, language, 60) + " zum zum zum") for _ in range(100)]
    assert likeness(texts[:100], apart) > 0.99
    assert 0.35 < likeness(texts[:100], texts[100:]) < 0.65
    assert likeness(texts[:9], texts[9:]) is None and likeness(texts[:10], texts[10:]) is not None


def totals(rows: list, **settings: object) -> dict:
    selector = Selector(Select(minimum={"helpfulness": 3.0}, **settings))
    for row in rows:
        selector.add(row)
    selector.settle()
    list(selector.decisions(rows))
    return selector.totals()


def test_a_selection_says_what_it_is(tmp_path: Path):
    rng = random.Random(9)
    rows = [
        planted.row(f"p{n}", f"question {n}", planted.text(rng, "en", 20 + n), scalar=4.0 if n % 2 else 2.0, kind="ab"[n % 2])
        for n in range(40)
    ]
    told = totals(rows)
    assert told["kept"] == 20 and told["variety"]["rows"] == 20 and told["variety"]["narrowed"] == []
    before, after = told["variety"]["before"], told["variety"]["after"]
    assert before["kinds"] == {"a": 20, "b": 20} and after["kinds"] == {"b": 20}
    lengths = [len(row.response) for row in rows]
    assert before["characters"] == {"least": min(lengths), "median": np.median(lengths), "most": max(lengths)}
    assert after["characters"]["median"] == np.median(lengths[1::2])
    assert set(told["length"]) == {"longest", "shortest", "chance"} and told["length"]["chance"] == 0.5
    assert "auc" not in before and "copies" not in told["variety"]
    assert totals(rows[::-1]) == told  # of the same rows in another order
    json.dumps(told, allow_nan=False)

    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"response": planted.text(rng, "en", 40) + " mine" * 9}) + "\n" for _ in range(30)))
    told = totals(rows, likeness=str(own))["variety"]
    assert told["copies"] == 0.0 and told["before"]["auc"] > 0.9 and told["after"]["auc"] > 0.9
    own.write_text("".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(0, 60, 2)))
    told = totals(rows, likeness=str(own))["variety"]  # prompts alone, so prompts are compared
    assert told["after"]["auc"] < 0.9 and told["copies"] == 0.0


def test_nothing_kept_and_nothing_at_all():
    nothing = [planted.row("p", "q", "x", scalar=1.0)]
    assert totals(nothing) == {
        "rows_in": 1, "kept": 0, "dropped": {"helpfulness below 3": 1}, "faulty": 0, "length": {}, "variety": {},
    }  # fmt: skip
    everything = dict(near_duplicates=0.8, percentile=50.0, length_free=True, balance={"kind": 0.5}, per_prompt=1)
    assert totals([], **everything)["rows_in"] == 0
    assert totals([planted.row("p", "q", " ")], **everything)["dropped"] == {"empty response": 1}
