"""Files of pairs as people have them: HelpSteer2's preference subset and TRL's columns."""

from __future__ import annotations

import pytest

from nemo_sdg.errors import RowError
from nemo_sdg.records import Labelled, Pair

MULTI = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nAdd 2 and 3."
ASKED = [{"role": "user", "content": "Add 2 and 3."}]


def published(strength: object = -2, **change: object) -> dict:
    row = {"split": "train", "prompt": MULTI, "response_1": "5", "response_2": "6", "preference_strength": strength}
    return {**row, "preference_statement": "@Response 1 is better", "all_preferences_unprocessed": [], **change}


@pytest.mark.parametrize("strength, chosen, margin", [(-3, "5", 3.0), (-1, "5", 1.0), (1, "6", 1.0), (3, "6", 3.0)])
def test_a_published_pair(strength, chosen, margin):
    pair = Pair.from_row(published(strength))
    assert (pair.chosen, pair.rejected) == (chosen, {"5": "6", "6": "5"}[chosen])
    assert (pair.score_chosen, pair.score_rejected, pair.margin, pair.judge) == (margin, 0.0, margin, "people")
    assert [turn["content"] for turn in pair.messages] == ["Hi", "Hello", "Add 2 and 3."]
    assert pair.extra["split"] == "train" and "response_1" not in pair.extra


def test_a_tie_has_no_margin():
    assert Pair.from_row(published(0)).margin == 0


@pytest.mark.parametrize("prompt", [{"prompt": "Add 2 and 3."}, {"prompt": ASKED}, {"messages": ASKED}])
@pytest.mark.parametrize("answer", [lambda text: text, lambda text: [{"role": "assistant", "content": text}]])
def test_pairs_in_the_columns_of_trl(prompt, answer):
    pair = Pair.from_row({**prompt, "chosen": answer("5"), "rejected": answer("6")})
    assert (pair.messages, pair.chosen, pair.rejected) == (tuple(ASKED), "5", "6")
    assert (pair.score_chosen, pair.score_rejected) == (1.0, 0.0)
    scores = {"score_chosen": 7.5, "score_rejected": 2}
    assert Pair.from_row({**prompt, "chosen": answer("5"), "rejected": answer("6"), **scores}).margin == 5.5


@pytest.mark.parametrize(
    "row, said",
    [
        (published(4), "out of range"),
        (published("2"), "not a number"),
        (published(None), "not a number"),
        (published(response_1=""), "response_1 has no text"),
        (published(response_2="5"), "both answers are the same"),
        (published(response_2="a <extra_id_1> b"), "response_2 holds a control piece"),
        (published(prompt=None), "no single prompt"),
        ({"prompt": "x", "chosen": "a"}, "rejected has no text"),
        ({"prompt": "x", "chosen": "a", "rejected": [{"role": "user", "content": "b"}]}, "not the assistant's"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "score_chosen": 1}, "not a number"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2}, "higher score"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "5"}], "chosen": "a", "rejected": "b"}, "the user's"),
    ],
)
def test_what_is_no_pair_is_refused(row, said):
    with pytest.raises(RowError, match=said):
        Pair.from_row(row)


def labels(**change: object) -> dict:
    lists = dict(helpfulness=[3, 4], correctness=[4, 4, 4], coherence=[4, 3, 4], complexity=[1], verbosity=[0, 1])
    return {"prompt": "x", "response": "y", **lists, **change}


def test_the_numbers_of_several_annotators_become_their_mean():
    assert Labelled.from_row(labels()).labels == dict(
        helpfulness=3.5, correctness=4.0, coherence=11 / 3, complexity=1.0, verbosity=0.5
    )


@pytest.mark.parametrize(
    "given, said",
    [([], "verbosity is missing"), ([1, 5], "out of range"), ([1, "2"], "not a number"), ([None], "not a number")],
)
def test_a_list_with_anything_else_is_refused(given, said):
    with pytest.raises(RowError, match=said):
        Labelled.from_row(labels(verbosity=given))
