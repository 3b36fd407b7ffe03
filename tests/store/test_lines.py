"""Lines that are read and changed without their rows, against what the rows themselves say."""

from __future__ import annotations

import math

import pytest

from nemo_sdg.config import ATTRIBUTES
from nemo_sdg.records import Decision, Scored
from nemo_sdg.store import lines
from nemo_sdg.store.files import dump

ODD = '\\" \\\\ ","prompt_id":"no","scores":{"x":1}} \u2028\x07\t 日本語 😀'
"""Quotes, backslashes, and what looks like the places that are looked for."""


def scored(name: str = "p#0", extra: dict | None = None, **scores: float) -> Scored:
    values = {attribute: scores.get(attribute, 3.1) for attribute in ATTRIBUTES}
    asked = ({"role": "user", "content": ODD},)
    made = {"seed": 0, "scores": {"helpfulness": 1}}
    return Scored(name, f"{name}{ODD}", 0, asked, ODD, (1, 2), "stop", made, extra or {}, scores=values)


ROWS = [
    scored(), scored(ODD), scored("é#1", {"topic": ODD, ODD: {"scores": {"a": [1.5, None]}}, "kind": 3}),
    scored("\\", {"kept_by": "x"}, verbosity=math.nan, complexity=-100.0),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_the_prompts_id_is_found_whatever_stands_in_the_ids(row):
    decision = Decision(**vars(row), kept=True, reason=None, scalar=1.0)
    assert lines.prompt_id(dump(row.to_row())) == lines.prompt_id(dump(decision.to_row())) == row.prompt_id


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("columns", [{}, {"leaked_from": ODD}, {"duplicate_of": "a", "scalar_length_free": 0.1}])
@pytest.mark.parametrize("reason, scalar", [(None, 2.5), (ODD, math.nan), ("x", -0.0)])
def test_a_decision_put_into_the_line_is_the_decisions_own_line(row, columns, reason, scalar):
    decided = {"kept": reason is None, "reason": reason, "scalar": scalar}
    whole = Decision(**{**vars(row), "extra": {**row.extra, **columns}}, **decided)
    made = lines.decided(dump(row.to_row()), columns, **decided)
    assert made == dump(whole.to_row())


@pytest.mark.parametrize("behind", [{}, {"x": 1}, {"x": {"scores": {"a": 1}}}, {"x": {"b": 1, "scores": {"a": 1}}}])
def test_a_line_in_which_scores_do_not_stand_last_is_left_alone(behind):
    """Where a prompt had a column of that name, ours has taken its place."""
    line = dump(scored("p", {"scores": "theirs", **behind}).to_row())
    made = lines.decided(line, {"duplicate_of": "a"}, kept=True, reason=None, scalar=1.0)
    assert (made is None) is bool(behind)
