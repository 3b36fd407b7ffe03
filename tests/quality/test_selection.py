"""Selection: known answers for every rule, and the laws that hold for any scores."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import planted
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_sdg.config import ATTRIBUTES, MISSING, Select
from nemo_sdg.errors import StoreError, UserError
from nemo_sdg.quality import Context, Drop, Keep, Selector
from nemo_sdg.quality.personal import find
from nemo_sdg.quality.rules import complete, may_teach, scalarise, thresholds, usable
from nemo_sdg.quality.selection import decide
from nemo_sdg.records import Decision, Scored

CARD = dict(zip(ATTRIBUTES, (0.3, 0.74, 0.46, 0.47, -0.33)))
FOURS = dict.fromkeys(ATTRIBUTES, 4.0)


def row(prompt: str, sample: int, response: str = "", **scores: float) -> Scored:
    asked = ({"role": "user", "content": prompt},)
    return Scored(
        f"{prompt}#{sample}", prompt, sample, asked, response or f"answer {sample}", scores={**FOURS, **scores}
    )


def test_the_scalar_is_the_model_cards():
    assert scalarise(FOURS, CARD) == pytest.approx(4 * (0.3 + 0.74 + 0.46 + 0.47 - 0.33), abs=1e-15)
    assert scalarise({**FOURS, "verbosity": 0.0}, CARD) == pytest.approx(4 * 1.97, abs=1e-15)
    assert scalarise({**FOURS, "helpfulness": 7.5, "verbosity": -3.0}, {"helpfulness": 1.0}) == 7.5  # never clamped


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_score_that_is_not_finite_never_passes_any_rule(bad: float, name: str):
    scores = {**FOURS, name: bad}
    assert math.isnan(scalarise(scores, {"helpfulness": 1.0}))
    for settings in (Select(minimum={}), Select(minimum={}, maximum={name: 9.0}), Select(minimum={name: -9.0})):
        assert thresholds(scores, settings) == "score not finite"


def test_what_was_not_scored_has_no_weight_and_passes_no_limit():
    """A reward model with one output: the others are MISSING, which is no number to weigh or compare."""
    scores = {**dict.fromkeys(ATTRIBUTES, MISSING), "helpfulness": 4.0}
    assert scalarise(scores, CARD) == pytest.approx(1.2, abs=1e-15)
    assert thresholds(scores, Select(minimum={"helpfulness": 3.5}, minimum_scalar=1.1)) is None
    assert thresholds(scores, Select(minimum={"helpfulness": 4.5})) == "helpfulness below 4.5"
    assert thresholds(scores, Select(minimum={"correctness": -200.0})) == "correctness was not scored"
    assert thresholds(scores, Select(minimum={}, maximum={"verbosity": 2.0})) == "verbosity was not scored"
    assert math.isnan(scalarise(scores, {"verbosity": 1.0}))
    assert thresholds(scores, Select(minimum={}, weights={"verbosity": 1.0})) == "nothing that has a weight was scored"
    assert thresholds({**scores, "helpfulness": math.nan}, Select(minimum={})) == "score not finite"


def test_a_limit_itself_passes_and_the_reason_names_the_limit():
    settings = Select(minimum={"helpfulness": 3.0}, maximum={"verbosity": 2.5}, minimum_scalar=5.0)
    good = {**FOURS, "helpfulness": 3.0, "verbosity": 2.5}
    assert thresholds(good, settings) is None
    assert thresholds({**good, "helpfulness": 2.999}, settings) == "helpfulness below 3"
    assert thresholds({**good, "verbosity": 2.501}, settings) == "verbosity above 2.5"
    assert thresholds({**good, "correctness": 0.0}, settings) == "scalar below 5"
    exact = Select(minimum={}, weights={"helpfulness": 1.0}, minimum_scalar=4.0)
    assert thresholds(FOURS, exact) is None


def test_a_text_that_cannot_be_trained_on_is_dropped_whatever_its_scores():
    assert usable("5") is None
    assert usable(" \n") == "empty response"
    assert usable("5 <extra_id_1>User") == "control piece in the response"
    reasons = [d.reason for d in decide([row("p", 0, " "), row("p", 1, "<extra_id_2>")], Select(minimum={}))]
    assert reasons == ["empty response", "control piece in the response"]


def test_the_best_of_a_prompt_are_kept_and_equals_go_by_sample():
    rows = [row("p", 0, helpfulness=3.2), row("q", 0), row("p", 1, helpfulness=3.9), row("p", 3), row("p", 2)]
    kept = [d.id for d in decide(rows, Select(minimum={}, per_prompt=2)) if d.kept]
    assert kept == ["q#0", "p#3", "p#2"]  # both at 4; the order of the rows stays
    one = decide(rows, Select(minimum={}, per_prompt=1))
    assert [d.id for d in one if d.kept] == ["q#0", "p#2"]
    assert {d.reason for d in one if not d.kept} == {"not among the best 1 of its prompt"}


def test_the_same_text_twice_is_kept_once_and_takes_no_place():
    rows = [row("p", 0, "5"), row("p", 1, "5"), row("p", 2, "five", helpfulness=3.0), row("q", 0, "5")]
    decisions = decide(rows, Select(minimum={}, per_prompt=2))
    assert [d.kept for d in decisions] == [True, False, True, True]
    assert decisions[1].reason == "same text as a better one"
    assert all(d.kept for d in decide(rows, Select(minimum={}, unique=False)))


def test_a_prompt_that_comes_again_under_another_id_is_the_same_prompt():
    again = [replace(row("p", n, text), id=f"p~2#{n}", prompt_id="p~2") for n, text in enumerate(("5", "V"))]
    other = replace(row("p", 0, "5"), id="s#0", messages=({"role": "system", "content": "x"}, *again[0].messages))
    rows = [row("p", 0, "5"), *again, other]
    reasons = [d.reason for d in decide(rows, Select(minimum={}))]
    assert sorted(map(str, reasons)) == ["None", "None", "None", "same text as a better one"] and reasons[3] is None
    assert sum(d.kept for d in decide(rows, Select(minimum={}, unique=False, per_prompt=1))) == 2


numbers = st.floats(-5, 9) | st.sampled_from([math.nan, math.inf, -math.inf])
scored_rows = st.lists(
    st.builds(
        lambda p, r, s: (p, r, s),
        st.sampled_from("pq"),
        st.sampled_from(["a", "b", "", "<extra_id_1>", "a@b.example", "one two three four five six"]),
        st.fixed_dictionaries({name: numbers for name in ATTRIBUTES}),
    ),
    max_size=12,
)
settings = st.builds(
    Select,
    percentile=st.none() | st.floats(0, 100),
    length_free=st.booleans(),
    near_duplicates=st.none() | st.floats(0.3, 1),
    balance=st.dictionaries(st.sampled_from(["topic", "kind"]), st.floats(0.1, 0.9)),
    pii=st.sampled_from(["off", "drop", "redact"]),
    minimum=st.dictionaries(st.sampled_from(ATTRIBUTES), st.floats(0, 4)),
    maximum=st.dictionaries(st.sampled_from(ATTRIBUTES), st.floats(2, 6)),
    minimum_scalar=st.none() | st.floats(-5, 5),
    per_prompt=st.none() | st.integers(1, 3),
    unique=st.booleans(),
    target=st.none() | st.integers(1, 8),
)


@given(scored_rows, settings)
def test_laws_of_selection(made: list, chosen: Select):
    rows = [row(p, i, r or " ", **s) for i, (p, r, s) in enumerate(made)]
    rows = [replace(one, extra={"topic": one.response[:1]}) for one in rows]
    decisions = decide(rows, chosen)
    assert [d.id for d in decisions] == [r.id for r in rows]
    for d in decisions:
        assert d.kept == (d.reason is None)
        if d.kept:
            assert math.isfinite(d.scalar) and all(math.isfinite(x) for x in d.scores.values())
            assert all(d.scores[name] >= low for name, low in chosen.minimum.items())
            assert all(d.scores[name] <= high for name, high in chosen.maximum.items())
    for prompt in "pq":
        kept = [d for d in decisions if d.kept and d.prompt_id == prompt]
        assert chosen.per_prompt is None or len(kept) <= chosen.per_prompt
        assert not chosen.unique or len({d.response for d in kept}) == len(kept)
    everything = [d for d in decisions if d.kept]
    for column, share in chosen.balance.items():
        for value in {d.extra.get(column) for d in everything}:
            most = math.floor(share * len(everything) + 1e-6)
            rounding = len(everything) == chosen.target  # one row more, where shares do not divide the target
            assert [d.extra.get(column) for d in everything].count(value) <= most + rounding
    assert chosen.target is None or len(everything) <= chosen.target
    assert chosen.pii == "off" or not any(find(d.response) for d in everything)
    again = {d.id: d.reason for d in decide(rows[::-1], chosen)}
    assert again == {d.id: d.reason for d in decisions}  # the order of arrival decides nothing


@pytest.mark.parametrize(
    "finish_reason, reason", [("stop", None), ("length", "cut off by length"), ("context", "cut off by context")]
)
def test_a_response_that_was_cut_off_is_dropped_unless_it_is_wanted(finish_reason, reason):
    assert complete(finish_reason, Select()) == reason
    assert complete(finish_reason, Select(finished=False)) is None
    decision = decide([replace(row("p", 0, "x"), finish_reason=finish_reason)], Select(minimum={}))[0]
    assert (decision.kept, decision.reason) == (reason is None, reason)


def test_the_first_rule_in_the_order_gives_the_reason(tmp_path: Path):
    """One row that breaks every rule; the rule that told of it is taken away each time."""
    leaked = "one two three four five six seven eight nine ten eleven twelve thirteen"
    evaluation = tmp_path / "e.jsonl"
    evaluation.write_text(json.dumps({"text": leaked}) + "\n")
    better = [replace(row("p", n, f"{leaked[:20]} of another kind {n}"), extra={"topic": "t"}) for n in range(2)]
    bad = row("p", 9, f"a@b.example {leaked}", helpfulness=1.0)
    bad = replace(bad, finish_reason="length", extra={"topic": "t"})
    said = []
    settings = Select(
        pii="drop", decontaminate=[str(evaluation)], percentile=50.0, per_prompt=2, balance={"topic": 0.6}, minimum_scalar=6.0
    )
    rules = (lambda row, context: Drop("mine") if row.sample == 9 else Keep(),)
    changes = [
        {"pii": "off"}, {"decontaminate": []}, {"finished": False}, {"minimum": {}}, {"minimum_scalar": None}, {},
        {"percentile": None}, {"per_prompt": None}, {"balance": {}},
    ]  # fmt: skip
    for number, change in enumerate(changes):
        said.append(decide([*better, bad], settings, rules)[2].reason)
        settings = replace(settings, **change)
        rules = () if number == 5 else rules
    assert said == [
        "personal data in the response: EMAIL", "shares a text with an evaluation file", "cut off by length",
        "helpfulness below 3", "scalar below 6", "mine", "below percentile 50", "not among the best 2 of its prompt",
        "topic above its share of 0.6",
    ]  # fmt: skip
    assert decide([*better, bad], settings)[2].kept


def test_a_poor_row_with_what_nobody_may_learn_says_so(tmp_path: Path):
    """A row that scores low, was cut off or has a better version still becomes a lesson for the reward model."""
    (tmp_path / "e.jsonl").write_text(json.dumps({"text": "what is the secret"}) + "\n")
    texts = ("a@b.example", "what is the secret", "7")
    rows = [row("p", n, text, helpfulness=1.0) for n, text in enumerate(texts)]
    rows += [replace(row("q", n, text), finish_reason="length") for n, text in enumerate(texts)]
    rows += [replace(row("s", n, text, helpfulness=3.0), provenance={"root": f"{n}", "revises": f"{n}"}) for n, text in enumerate(texts)]
    rows += [replace(row("t", n, "9"), provenance={"root": f"{n}", "revises": f"{n}"}) for n in range(3)]
    told = decide(rows, Select(pii="drop", decontaminate=[str(tmp_path / "e.jsonl")]))
    assert [may_teach(d.reason) for d in told] == [False, False, True] * 3 + [True] * 3
    assert [d.kept for d in told] == [False] * 9 + [True, False, False]


def test_own_rules_see_the_row_and_its_scalar_and_must_answer():
    rows = [row("p", 0, "short"), row("p", 1, "a long answer")]

    def brief(one: Scored, context: Context) -> Keep | Drop:
        return Drop(f"scalar {context.scalar:.2f}") if len(one.response) > context.settings.per_prompt * 6 else Keep()

    chosen = Select(minimum={}, per_prompt=1)
    assert [d.reason for d in decide(rows, chosen, [brief])] == [None, "scalar 6.56"]
    for wrong, said in [
        (lambda one, context: None, "says neither Keep() nor Drop(reason)"),
        (lambda one, context: Drop(" "), "says neither Keep() nor Drop(reason)"),
        (lambda one, context: 1 / 0, "failed, found ZeroDivisionError"),
    ]:
        with pytest.raises(UserError) as caught:
            decide(rows, chosen, [wrong])
        assert said in str(caught.value) and "row p#0" in str(caught.value)


def test_a_rule_that_fails_on_a_version_with_a_better_one_stops_nothing():
    """Also where the better one comes later; where there is none, the failure is told with its cause."""
    first = row("p", 0, "x" * 999, helpfulness=3.5)
    better = replace(row("p", 1, "a better one"), provenance={"root": first.id, "revises": first.id})

    def fails(one: Scored, context: Context) -> Keep | Drop:
        return Keep() if one.id == better.id else Drop(one.extra["none"])

    for rows in ([first, better], [better, first]):
        reasons = {one.id: one.reason for one in decide(rows, Select(), [fails])}
        assert reasons == {first.id: "another version of it is better", better.id: None}
    selector = Selector(Select(), [fails], versions=True)
    selector.add(first)
    with pytest.raises(UserError, match="row p#0: the rule fails failed, found KeyError: 'none'") as caught:
        selector.settle()
    cause, seen = caught.value.__cause__.__traceback__, []
    while cause is not None:
        seen.append((cause.tb_frame.f_code.co_name, dict(cause.tb_frame.f_locals)))
        cause = cause.tb_next
    assert seen[-1] == ("fails", {}), "the place of the mistake, and no row in memory"
    assert not any(local == first for _, found in seen for local in found.values())
    assert "first_reason" not in [entry.name for entry in caught.traceback], "its frame holds the row, too"
    with pytest.raises(UserError, match="the rule fails failed"):
        Selector(Select(), [fails]).add(first)


def test_rows_that_change_between_the_passes_are_an_error():
    rows = [row("p", n) for n in range(3)]
    for other in (rows[:2], [*rows, row("p", 3)], [rows[0], rows[2], rows[1]]):
        selector = Selector(Select())
        for one in rows:
            selector.add(one)
        selector.settle()
        with pytest.raises(StoreError, match="the rows changed"):
            list(selector.decisions(other))


def judged(prompt: str, broken: object, **scores: float) -> Scored:
    return replace(row(prompt, 0, **scores), extra={"broken": broken})


def test_a_row_that_breaks_a_check_is_dropped_with_its_first_reason():
    rows = [
        judged("a", []), judged("b", ["off topic", "must: x"]), judged("c", ["must not: y"], helpfulness=0.0),
        judged("d", None), judged("e", ["英語では書かない"]), row("f", 0),
    ]  # fmt: skip
    reasons = [decision.reason for decision in decide(rows, Select())]
    assert reasons == [None, "off topic", "must not: y", None, "英語では書かない", None]
    unchecked = [decision.reason for decision in decide(rows, Select(checks=False))]
    assert unchecked == [None, None, "helpfulness below 3", None, None, None]


@pytest.mark.parametrize("wrong", [True, "off topic", [3], [""], {"a": 1}, 0])
def test_a_column_that_is_no_list_of_reasons_passes_nothing_in_silence(wrong):
    (decision,) = decide([judged("a", wrong)], Select())
    assert decision.reason == "the column broken is no list of reasons"
    assert decide([judged("a", wrong)], Select(checks=False))[0].kept


def test_a_text_that_cannot_be_learned_is_that_first():
    assert decide([replace(judged("a", ["off topic"]), response=" ")], Select())[0].reason == "empty response"


def settled_after_each(rows: list[Scored], settings: Select) -> Iterator[tuple[list[Decision], dict]]:
    """Decisions and totals after each row, which are those of a selector that is settled once, to the order of reasons."""
    selector = Selector(settings)
    for number, one in enumerate(rows, start=1):
        selector.add(one)
        selector.settle()
        fresh = Selector(settings)
        for known in rows[:number]:
            fresh.add(known)
        fresh.settle()
        (decisions, totals), once = ((list(of.decisions(rows[:number])), of.totals()) for of in (selector, fresh))
        assert decisions == once[0] and json.dumps(totals) == json.dumps(once[1])
        yield decisions, totals


def test_reasons_of_as_many_rows_are_told_in_the_order_of_the_rows():
    rows = [row("p", 0), row("p", 1), row("q", 0, helpfulness=1.0), row("p", 2), row("q", 1, helpfulness=1.5)]
    *_, (_, totals) = settled_after_each(rows, Select(per_prompt=1))
    assert list(totals["dropped"].items()) == [("not among the best 1 of its prompt", 2), ("helpfulness below 3", 2)]


def test_rows_that_come_after_a_settle_change_what_was_near():
    """What is near which kept row is worked out anew each time. A text and its halves are alike, the halves are not."""
    a, b, c, d = (" ".join(f"{name}{n}" for n in range(60)) for name in "abcd")
    rows = [
        planted.row("1", "q", a, scalar=3.0), planted.row("2", "q", b, scalar=3.5),
        planted.row("3", "q", f"{a} {b}", scalar=2.0), planted.row("4", "q", f"{c} {d}", scalar=3.2),
        planted.row("5", "q", d, scalar=2.5), planted.row("6", "q", c, scalar=4.0),
    ]  # fmt: skip
    settings = Select(minimum={}, near_duplicates=0.4)
    found = []
    for decisions, _ in settled_after_each(rows, settings):
        found.append({one.id: one.extra.get("duplicate_of") for one in decisions if one.extra or not one.kept})
    assert found == [{}, {}, {"3#0": "2#0"}, {"3#0": "2#0"}, {"3#0": "2#0", "5#0": "4#0"}, {"3#0": "2#0", "4#0": "6#0"}]
