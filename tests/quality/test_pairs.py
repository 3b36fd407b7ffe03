"""Pairs: the verifier before the reward model, margins, and why a prompt has none."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from rounds import scored

from nemo_sdg.config import Preference, Select
from nemo_sdg.quality.pairs import INCONSISTENT, TIE, candidates, pairs_of
from nemo_sdg.records import Decision


def decision(sample: int, scalar: float, response: str | None = None, kept: bool = True, **columns: object) -> Decision:
    row = scored("p", sample, f"text {sample}" if response is None else response)
    row = dataclasses.replace(row, extra=columns, provenance={"policy": "m", "sample": sample})
    return Decision(**vars(row), kept=kept, reason=None if kept else "why", scalar=scalar)


def made(rows: list[Decision], select: Select | None = None, **settings: object) -> object:
    """"chosen>rejected by judge" of each pair, or the reason."""
    pairs, reason = pairs_of(rows, Preference(**settings), select or Select())
    assert (reason is None) == bool(pairs)
    return reason or [f"{pair.id.replace('p#', '')} {pair.judge}" for pair in pairs]


def test_the_best_and_the_worst_are_a_pair():
    rows = [decision(0, 2.0), decision(1, 3.0), decision(2, 1.0)]
    assert made(rows) == ["1>2 reward"]
    (pair,), _ = pairs_of(rows, Preference(), Select())
    assert (pair.id, pair.chosen, pair.rejected) == ("p#1>p#2", "text 1", "text 2")
    assert (pair.score_chosen, pair.score_rejected, pair.margin) == (3.0, 1.0, 2.0)
    assert pair.messages == rows[1].messages and pair.scores_chosen == rows[1].scores
    assert pair.provenance == {
        "chosen": {"id": "p#1", "policy": "m", "sample": 1},
        "rejected": {"id": "p#2", "policy": "m", "sample": 2},
    }


def test_the_right_answer_decides_before_the_score():
    right, wrong = decision(0, 1.0, "5", answer="5"), decision(1, 3.0, "6", answer="5")
    assert made([right, wrong]) == ["0>1 verifier"]
    (pair,), _ = pairs_of([right, wrong], Preference(), Select())
    assert pair.margin == -2.0  # the scores stay what they are
    assert made([decision(0, 1.0, correct=True), decision(1, 3.0, correct=False)]) == ["0>1 verifier"]


def test_among_equally_right_ones_the_score_decides_and_a_wrong_one_is_never_chosen():
    rows = [decision(0, 1.0, "so 5\n5", answer="5"), decision(1, 3.0, "5", answer="5")]
    assert made(rows) == ["1>0 reward"]
    assert made([decision(0, 1.0, "6", answer="5"), decision(1, 3.0, "7", answer="5")]) == "no right response"
    wrong = [decision(i, float(i), f"{i + 6}", answer="5") for i in range(1, 4)]
    assert made([decision(0, 1.0, "5", answer="5"), *wrong], per_prompt=2) == ["0>1 verifier"]
    known, unknown = decision(0, 1.0, correct=True), decision(1, 3.0)
    assert made([known, unknown]) == "tie"  # neither may be chosen over the other
    assert made([decision(0, 3.0, correct=True), decision(1, 1.0)]) == ["0>1 reward"]


@pytest.mark.parametrize(
    "scalars, margin, outcome",
    [
        ((3.0, 2.5), 0.5, ["0>1 reward"]),
        ((3.0, 2.625), 0.5, "margin below 0.5"),
        ((3.0, 3.0), 0.0, "tie"),
        ((3.0, 2.9375), 0.0, ["0>1 reward"]),
        ((2.0, 3.0), 1.0, ["1>0 reward"]),
        ((math.nan, 3.0), 0.0, "fewer than two usable responses"),
    ],
)
def test_a_margin_must_be_reached(scalars, margin, outcome):
    assert made([decision(i, scalar) for i, scalar in enumerate(scalars)], margin=margin) == outcome


def test_only_what_was_selected_is_chosen_but_anything_readable_is_rejected():
    rows = [decision(0, 3.0, kept=False), decision(1, 2.0), decision(2, 1.0, kept=False)]
    assert made(rows) == ["1>2 reward"]
    assert made(rows, selected=False) == ["0>2 reward"]
    assert made([rows[0], rows[2]]) == "no selected response"


def test_what_cannot_be_learned_is_in_no_pair():
    rows = [decision(0, 3.0), decision(1, 1.0, " "), decision(2, 0.5, "a <extra_id_1> b")]
    assert made(rows) == "fewer than two usable responses"
    cut = dataclasses.replace(decision(3, 1.0), finish_reason="length")
    assert made([rows[0], cut]) == "fewer than two usable responses"
    assert made([rows[0], cut], Select(finished=False)) == ["0>3 reward"]
    assert made([decision(0, 3.0, "same"), decision(1, 1.0, "same")]) == "tie"
    assert made([rows[0]]) == "fewer than two usable responses"


def test_several_pairs_share_no_response_and_verified_ones_come_first():
    rows = [decision(i, float(i)) for i in range(5)]
    assert made(rows, per_prompt=9) == ["4>0 reward", "3>1 reward"]
    assert made(rows, per_prompt=1) == ["4>0 reward"]
    told = [decision(0, 2.0, correct=True), decision(1, 1.0, correct=False), decision(2, 9.0, correct=True)]
    told.append(decision(3, 0.0))
    assert made(told, per_prompt=2) == ["2>1 verifier", "0>3 reward"]


def test_the_order_of_arrival_changes_nothing():
    rows = [decision(i, scalar) for i, scalar in enumerate((2.0, 3.0, 3.0, 1.0, 1.0))]
    assert made(rows, per_prompt=2) == ["1>3 reward", "2>4 reward"]
    assert all(made(list(some), per_prompt=2) == made(rows, per_prompt=2) for some in itertools.permutations(rows))


def couples(rows: list[Decision], **settings: object) -> list[str]:
    found = candidates(rows, Preference(judge="llm", **settings), Select())
    return [f"{high.id}>{low.id}".replace("p#", "") for high, low in found]


def compared(rows: list[Decision], verdicts: dict[str, object], **settings: object) -> object:
    """As `made`, with what the judge says: the better one's sample, or a reason."""
    said = {}
    for names, found in verdicts.items():
        high, low = names.split(">")
        said[f"p#{high}>p#{low}"] = (None, found) if isinstance(found, str) else (f"p#{found}", None)
    pairs, reason = pairs_of(rows, Preference(judge="llm", **settings), Select(), said)
    assert (reason is None) == bool(pairs)
    return reason or [f"{pair.id.replace('p#', '')} {pair.judge}" for pair in pairs]


def test_the_judge_compares_what_differs_most():
    rows = [decision(0, 2.0), decision(1, 3.0), decision(2, 1.0), decision(3, 2.9)]
    assert couples(rows) == ["1>2"] and couples(rows, per_prompt=2) == ["1>2", "3>0"]
    assert couples(rows, per_prompt=9, margin=9.0) == ["1>2", "3>0"], "the margin is the reward model's"
    equal = [decision(sample, 2.0) for sample in (2, 0, 1)]
    assert couples(equal) == ["0>1"] and couples([decision(0, 1.0, "x"), decision(1, 3.0, "x")]) == []


def test_the_judge_is_not_asked_what_a_verifier_knows_or_what_may_not_be_chosen():
    known = [decision(0, 3.0, correct=False), decision(1, 1.0, correct=True), decision(2, 2.0)]
    assert couples(known) == [] and couples(known, per_prompt=2) == []
    more = [*known, decision(3, 5.0)]
    assert couples(more, per_prompt=2) == ["3>2"] and couples(more) == [], "the verifier's pair is all there may be"
    assert compared(known, {}) == ["1>0 verifier"]
    dropped = [decision(0, 3.0, kept=False), decision(1, 1.0), decision(2, 0.0, kept=False)]
    assert couples(dropped) == ["0>1"] and couples(dropped[::2]) == []
    assert couples(dropped[::2], selected=False) == ["0>2"]
    wrong = [decision(0, 3.0, correct=False), decision(1, 2.0, correct=False)]
    assert couples(wrong) == [] and compared(wrong, {}) == "no right response"


def test_what_the_judge_says_makes_the_pair():
    rows = [decision(0, 2.0), decision(1, 3.0)]
    assert compared(rows, {"1>0": 1}) == ["1>0 llm"] and compared(rows, {"1>0": 0}) == ["0>1 llm"]
    assert compared(rows, {"1>0": TIE}) == TIE and compared(rows, {"1>0": INCONSISTENT}) == INCONSISTENT
    rows = [decision(0, 2.0), decision(1, 3.0), decision(2, 1.0), decision(3, 2.9)]
    assert compared(rows, {"1>2": TIE, "3>0": 0}, per_prompt=2) == ["0>3 llm"]
    (pair,), _ = pairs_of(rows, Preference(judge="llm"), Select(), {"p#1>p#2": ("p#2", None)})
    assert (pair.score_chosen, pair.score_rejected) == (1.0, 3.0)


def test_what_the_judge_prefers_must_be_allowed():
    rows = [decision(0, 2.0), decision(1, 3.0, kept=False)]
    refused = "the judge prefers a response that was not selected, or is not right"
    assert compared(rows, {"1>0": 1}) == refused and compared(rows, {"1>0": 0}) == ["0>1 llm"]
    assert compared(rows, {"1>0": 1}, selected=False) == ["1>0 llm"]
    right = [decision(0, 2.0, correct=True), decision(1, 3.0)]
    assert couples(right) == ["1>0"] and compared(right, {"1>0": 1}) == refused
    assert compared([decision(0, 2.0, "x"), decision(1, 3.0, "x")], {}) == "tie"
