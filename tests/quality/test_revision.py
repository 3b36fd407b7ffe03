"""What nearly passed, how it is asked for again, and which version is kept."""

from __future__ import annotations

import dataclasses
import math

import pytest

from nemo_sdg.config import ATTRIBUTES, MISSING, Select
from nemo_sdg.quality.among import SUPERSEDED
from nemo_sdg.quality.revision import answered, ask, good_enough, root_of, shortfalls
from nemo_sdg.quality.selection import decide
from nemo_sdg.records import Response, Scored

LIMITS = Select(minimum={"helpfulness": 3.0}, maximum={"verbosity": 2.0}, weights={"helpfulness": 1.0})


def row(name: str = "p#0", root: str | None = None, text: str = "5", finish: str = "stop", **scores: float) -> Scored:
    asked = ({"role": "user", "content": "q"},)
    values = {attribute: scores.get(attribute, 2.0) for attribute in ATTRIBUTES}
    said = {"root": root, "revises": root} if root else {}
    return Scored(name, "p", 0, asked, text, finish_reason=finish, provenance=said, scores=values)


def broken(row: Scored, *reasons: str) -> Scored:
    return dataclasses.replace(row, extra={**row.extra, "broken": list(reasons)})


def test_a_broken_requirement_may_be_mended_and_another_subject_may_not():
    good = row(helpfulness=3.5)
    assert shortfalls(broken(good, "must: x"), LIMITS) == [] and not good_enough(broken(good, "must: x"), LIMITS)
    assert good_enough(broken(good), LIMITS) and good_enough(good, LIMITS)
    assert shortfalls(broken(good, "must: x", "off topic"), LIMITS) is None
    unjudged = dataclasses.replace(LIMITS, checks=False)
    assert good_enough(broken(good, "off topic"), unjudged)
    assert shortfalls(dataclasses.replace(good, extra={"broken": "yes"}), LIMITS) is None


def test_a_version_that_breaks_nothing_is_better_than_one_with_a_higher_scalar():
    first = broken(row(helpfulness=4.0), "must: x")
    second = broken(row("p#0/r1#0", root="p#0", helpfulness=3.0))
    kept = {one.id: one.reason for one in decide([first, second], LIMITS)}
    assert kept == {"p#0": SUPERSEDED, "p#0/r1#0": None}


def test_what_was_judged_of_one_answer_is_not_said_of_the_next():
    judged = dataclasses.replace(row(), extra={"topic": "t", "broken": ["must: x"], "unclear": ["y"], "correct": False})
    assert set(ask(judged, "again", 1).extra) == {"topic", "revises"}


def test_each_missed_limit_is_told_with_its_distance():
    found = shortfalls(row(helpfulness=2.25, verbosity=2.5), LIMITS)
    assert [(s.name, s.kind, s.limit, s.distance) for s in found] == [
        ("helpfulness", "minimum", 3.0, 0.75), ("verbosity", "maximum", 2.0, 0.5)
    ]  # fmt: skip
    (scalar,) = shortfalls(row(helpfulness=3.0), dataclasses.replace(LIMITS, minimum_scalar=3.5))
    assert (scalar.name, scalar.score, scalar.distance) == ("scalar", 3.0, 0.5)


def test_a_limit_itself_passes():
    assert shortfalls(row(helpfulness=3.0, verbosity=2.0), LIMITS) == []


@pytest.mark.parametrize(
    "bad",
    [
        row(text=" "), row(text="<extra_id_1>"), row(finish="length"), row(helpfulness=math.nan), row(coherence=math.inf),
        row(verbosity=MISSING), row(helpfulness=MISSING),
    ],
    ids=["empty", "control piece", "cut off", "nan", "infinity", "not scored", "no weight scored"],
)  # fmt: skip
def test_what_a_better_score_does_not_mend(bad):
    assert shortfalls(bad, LIMITS) is None


def test_a_revision_is_asked_for_in_a_dialogue_and_answers_the_prompt_itself():
    first = row("p#3", text="old")
    prompt = ask(dataclasses.replace(first, sample=3, extra={"topic": "t"}), "Better, please.", 1)
    assert prompt.id == "p#3/r1"
    assert [turn["content"] for turn in prompt.messages] == ["q", "old", "Better, please."]
    made = answered(Response(f"{prompt.id}#0", prompt.id, 0, prompt.messages, "new", extra=prompt.extra))
    assert (made.id, made.prompt_id, made.sample, made.response) == ("p#3/r1#0", "p", 3, "new")
    assert made.messages == first.messages and made.extra == {"topic": "t"}
    assert made.provenance == {"root": "p#3", "revises": "p#3"}
    again = Scored(**vars(made), scores=first.scores)
    second = ask(again, "Better still.", 2)
    last = answered(Response("x", second.id, 0, second.messages, "newer", extra=second.extra))
    assert root_of(last) == "p#3" and last.provenance["revises"] == "p#3/r1#0"
    assert [turn["content"] for turn in second.messages] == ["q", "new", "Better still."]


def test_a_column_of_the_users_that_is_called_like_ours_comes_back():
    first = dataclasses.replace(row("p#0"), extra={"revises": "v1", "topic": "t"})
    prompt = ask(first, "Better, please.", 1)
    made = answered(Response("p#0/r1#0", prompt.id, 0, prompt.messages, "new", extra=prompt.extra))
    assert made.extra == first.extra and made.provenance["revises"] == "p#0"


def test_one_version_is_decided_on_and_the_others_say_why():
    rows = [row("a", helpfulness=1.0), row("b", helpfulness=3.5), row("a/r1#0", root="a", helpfulness=3.25)]
    decisions = decide(rows, dataclasses.replace(LIMITS, unique=False))
    assert [(d.id, d.kept, d.reason, d.scalar) for d in decisions] == [
        ("a", False, SUPERSEDED, 1.0), ("b", True, None, 3.5), ("a/r1#0", True, None, 3.25)
    ]  # fmt: skip


def test_of_two_rows_with_one_id_the_better_stays():
    rows = [row("a", helpfulness=3.0, text="x"), row("a", helpfulness=3.5, text="y"), row("a", helpfulness=3.0, text="z")]
    assert [d.reason for d in decide(rows, LIMITS)] == [SUPERSEDED, None, SUPERSEDED]


def test_the_target_keeps_the_best_and_of_equals_the_earlier():
    rows = [row(f"p{i}", helpfulness=score, text=str(i)) for i, score in enumerate((3.0, 3.5, 1.0, 3.5, 3.25))]
    decisions = decide(rows, dataclasses.replace(LIMITS, target=2))
    beyond = "beyond the target of 2"
    assert [d.reason for d in decisions] == [beyond, None, "helpfulness below 3", None, beyond]
    assert sum(d.kept for d in decide(rows, dataclasses.replace(LIMITS, target=9))) == 4
