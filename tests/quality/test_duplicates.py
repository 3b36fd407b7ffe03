"""Near duplicates against exact comparison of all pairs, and against datasketch."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import planted
import pytest
from datasketch import MinHash, MinHashLSH

from nemo_sdg.config import Select
from nemo_sdg.quality import decide
from nemo_sdg.quality.duplicates import SHORT, PERMUTATIONS, bands, jaccard, signatures
from nemo_sdg.quality.text import shingles, tokens

THRESHOLD, N = 0.7, 5


def test_bands_are_as_wide_as_recall_allows():
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95):
        count, width = bands(threshold)
        assert count * width <= PERMUTATIONS and 1 - (1 - threshold**width) ** count >= 0.995
        wider = PERMUTATIONS // (width + 1)
        assert 1 - (1 - threshold ** (width + 1)) ** wider < 0.995
    assert bands(0.8) == (21, 6) and bands(1.0) == (1, 128) and bands(0.3)[0] <= 64


def test_jaccard_of_known_sets():
    sets = {name: np.array(values, np.uint64) for name, values in (("a", [1, 2, 3]), ("b", [2, 3, 4]), ("c", [9]), ("d", []))}
    assert jaccard(sets["a"], sets["b"]) == 0.5 and jaccard(sets["a"], sets["c"]) == 0.0
    assert jaccard(sets["a"], sets["a"]) == 1.0 and jaccard(sets["d"], sets["d"]) == 1.0 and jaccard(sets["a"], sets["d"]) == 0


def corpus(language: str, seed: int = 11) -> list[list[str]]:
    """Texts as words: originals, and copies of them with more and more words changed."""
    rng, texts = random.Random(seed), []
    for number in range(60):
        some = planted.words(rng, language, 100)
        texts.append(some)
        if number < 40:
            texts.append(planted.edited(rng, some, language, number % 10))
    rng.shuffle(texts)
    return texts


def greedy(similar: set[tuple[int, int]], count: int) -> dict[int, int]:
    """Row -> the first kept row that it is like, rows taken in their order."""
    kept, gone = [], {}
    for row in range(count):
        like = next((other for other in kept if (other, row) in similar), None)
        if like is None:
            kept.append(row)
        else:
            gone[row] = like
    return gone


def word_shingles(text: str) -> set[tuple[str, ...]]:
    some = text.casefold().replace(".", " . ").split()
    return {tuple(some[start : start + N]) for start in range(len(some) - N + 1)}


def character_shingles(text: str) -> set[str]:
    return {text[start : start + 2 * N] for start in range(len(text) - 2 * N + 1)}


@pytest.mark.parametrize("language, cut", [("en", word_shingles), ("ja", character_shingles)])
def test_what_is_found_is_what_comparing_all_pairs_finds_and_so_does_datasketch(language: str, cut):
    texts = [planted.joined(some, language) for some in corpus(language)]
    rows = [planted.row(f"r{i:03}", f"q{i}", text, scalar=4 - i / 1000) for i, text in enumerate(texts)]
    decisions = decide(rows, Select(minimum={}, near_duplicates=THRESHOLD, shingle=N))
    sets = [cut(text) for text in texts]
    alike = {(i, j): len(a & b) / len(a | b) for (i, a), (j, b) in combinations(enumerate(sets), 2)}
    expected = greedy({pair for pair, value in alike.items() if value >= THRESHOLD}, len(rows))
    assert {i: d.to_row()["duplicate_of"] for i, d in enumerate(decisions) if not d.kept} == {
        i: f"r{j:03}#0" for i, j in expected.items()
    }
    assert 5 < len(expected) < 40 and {d.reason for d in decisions} == {None, "near duplicate of a better one"}

    index, hashed = MinHashLSH(num_perm=PERMUTATIONS, params=bands(THRESHOLD)), []
    for i, members in enumerate(sets):
        hashed.append(MinHash(num_perm=PERMUTATIONS))
        hashed[i].update_batch([repr(member).encode() for member in members])
        index.insert(i, hashed[i])
    candidates = {(i, j) for j in range(len(rows)) for i in index.query(hashed[j]) if i < j}
    assert greedy({pair for pair in candidates if alike[pair] >= THRESHOLD}, len(rows)) == expected
    ours = signatures([shingles(tokens(text), N) for text in texts])
    for (i, j), true in alike.items():
        if true > 0.1:
            error = 4 * (true * (1 - true) / PERMUTATIONS) ** 0.5 + 0.01
            assert abs((ours[i] == ours[j]).mean() - true) < error
            assert abs(hashed[i].jaccard(hashed[j]) - true) < error


def test_the_best_stays_whatever_the_order_and_its_id_is_told():
    rng = random.Random(2)
    some = planted.words(rng, "en", 100)
    rows = [
        planted.row(name, name, planted.joined(planted.edited(rng, some, "en", 1), "en"), scalar=scalar)
        for name, scalar in (("low", 1.0), ("high", 3.0), ("middle", 2.0))
    ]
    settings = Select(minimum={}, near_duplicates=0.8)
    for order in (rows, rows[::-1]):
        told = {d.prompt_id: (d.kept, d.to_row().get("duplicate_of")) for d in decide(order, settings)}
        assert told == {"high": (True, None), "low": (False, "high#0"), "middle": (False, "high#0")}
    again = decide(decide(rows, settings), Select(minimum={}))
    assert all("duplicate_of" not in d.to_row() for d in again)


@pytest.mark.parametrize("best", ["a", "b"])
def test_of_two_better_rows_that_are_alike_the_best_is_named(best: str):
    some = [f"w{number}" for number in range(140)]
    parts = {"a": some[:100], "b": some[40:], "c": some[20:120]}  # a and b share 60 of 140 words, c 80 of 120 with each
    rows = [
        planted.row(name, name, " ".join(part), scalar=3.0 if name == best else 2.0 - (name == "c"))
        for name, part in parts.items()
    ]
    decisions = decide(rows, Select(minimum={}, near_duplicates=0.5))
    assert [d.kept for d in decisions] == [True, True, False] and decisions[2].extra["duplicate_of"] == f"{best}#0"


def test_a_short_answer_may_be_that_of_many_questions():
    rng = random.Random(4)
    questions = [planted.text(rng, "en", 40) for _ in range(3)]
    rows = [planted.row(f"p{n}", question, "The answer is 5.", scalar=4 - n / 10) for n, question in enumerate(questions)]
    settings = Select(minimum={}, near_duplicates=0.7)
    assert all(d.kept for d in decide(rows, settings))
    rows.append(planted.row("again", questions[0] + " Now.", "The answer is 5.", scalar=1.0))
    gone = [(d.prompt_id, d.to_row()["duplicate_of"]) for d in decide(rows, settings) if not d.kept]
    assert gone == [("again", "p0#0")]


@pytest.mark.parametrize(("words", "alone"), [(SHORT - 1, False), (SHORT, True)])
def test_how_long_a_response_is_that_stands_for_itself(words: int, alone: bool):
    text = " ".join(f"w{number}" for number in range(words))
    rows = [planted.row(name, f"{name} asks", text, scalar=scalar) for name, scalar in (("a", 2.0), ("b", 1.0))]
    told = decide(rows, Select(minimum={}, near_duplicates=1.0, shingle=1))
    assert [d.kept for d in told] == [True, not alone]


def test_a_row_at_the_threshold_is_a_near_duplicate():
    some = [f"w{number}" for number in range(80)]
    rows = [planted.row("a", "a", " ".join(some[:60])), planted.row("b", "b", " ".join(some[20:]), scalar=1.0)]
    for threshold, kept in ((0.5, False), (0.501, True)):  # 40 of 80 words
        told = decide(rows, Select(minimum={}, near_duplicates=threshold, shingle=1))
        assert [d.kept for d in told] == [True, kept]


def test_texts_without_a_token_are_not_like_each_other():
    rows = [planted.row(f"p{n}", f"q{n}", "\u2063" * n) for n in (1, 2)]
    text = planted.text(random.Random(6), "en", 80)
    rows = [planted.row(name, name, text, scalar=scalar) for name, scalar in (("x", 2.0), ("y", 1.0))] + rows
    assert [d.kept for d in decide(rows, Select(minimum={}, near_duplicates=0.5))] == [True, False, True, True]


def test_a_row_that_is_dropped_takes_nobody_along():
    """Below the minimum, or beaten within its prompt, it is no better row."""
    text = planted.text(random.Random(6), "en", 80)
    low = planted.row("low", "a", text, scalar=2.0)
    high = planted.row("high", "b", text + " Indeed.", scalar=4.0)
    assert [d.kept for d in decide([high, low], Select(minimum={"helpfulness": 1.0}, near_duplicates=0.8))] == [True, False]
    assert [d.kept for d in decide([high, low], Select(minimum={}, maximum={"helpfulness": 3.0}, near_duplicates=0.8))] == [
        False, True,
    ]  # fmt: skip
    best = planted.row("high", "b", "something else altogether", sample=1, scalar=5.0)
    decisions = decide([high, best, low], Select(minimum={}, per_prompt=1, near_duplicates=0.8))
    assert [d.kept for d in decisions] == [False, True, True]
    assert decisions[0].reason == "not among the best 1 of its prompt"
