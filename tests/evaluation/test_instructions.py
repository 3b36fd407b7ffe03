"""IFEval's four shares on responses whose outcome is known, and what loosening repairs."""

import pytest

from nemo_sdg.errors import RowError
from nemo_sdg.evaluation.instructions import following, follows, verifiable
from nemo_sdg.records import Prompt
from nemo_sdg.synthesis.requirements import Requirement


def asks(wanted: bool = True, **spec) -> Requirement:
    return Requirement("a line", "instruction not followed: a line", wanted, spec)


LOWER, NO_COMMA = asks(kind="lower"), asks(kind="no_comma")
TWO_WORDS = asks(kind="words", relation="at_most", count=2)


@pytest.mark.parametrize(
    ("check", "response", "strict", "loose"),
    [
        (LOWER, "all of it", True, True),
        (LOWER, "Sure:\nall of it", False, True),  # without its first line
        (LOWER, "all of it\nThanks", False, True),  # without its last
        (LOWER, "Sure:\nall of it\nThanks", False, True),  # without both
        (LOWER, "Sure:\nall Of it\nThanks", False, False),
        (asks(kind="end_with", text="the end"), "it is the *end*", False, True),  # without asterisks
        (TWO_WORDS, "Here you are:\nab cd", False, True),
        (LOWER, "", False, False),
        (LOWER, " \n ", False, False),
        (TWO_WORDS, "", False, False),  # nothing has no more than two words, and follows nothing
        (asks(wanted=False, kind="include", texts=["yes"]), "no", True, True),
        (asks(wanted=False, kind="include", texts=["yes"]), "yes\nno", False, True),
        (asks(wanted=False, kind="include", texts=["yes"]), "yes", False, False),
        (asks(wanted=False, kind="include", texts=["yes"]), "", False, False),
    ],
)
def test_strict_and_loose(check, response, strict, loose):
    assert (follows(check, response, strict=True), follows(check, response, strict=False)) == (strict, loose)


def test_shares_of_prompts_and_of_instructions():
    answered = [
        ([LOWER, NO_COMMA], "all good"),  # both
        ([LOWER, NO_COMMA], "Sure:\nall good"),  # strictly the second alone, loosely both
        ([LOWER], "A, B"),  # neither way
        ([NO_COMMA, TWO_WORDS, LOWER], "A, b"),  # the second
    ]
    told = following(answered)
    assert told["prompt_strict"] == 1 / 4 and told["prompt_loose"] == 2 / 4
    assert told["instruction_strict"] == 4 / 8 and told["instruction_loose"] == 5 / 8
    assert (told["prompts"], told["instructions"]) == (4, 8)
    assert (told["low"], told["high"]) == pytest.approx((0.0456, 0.6994), abs=1e-4)  # Wilson, 1 of 4


def test_nothing_has_no_share():
    assert following([]) == {
        "prompt_strict": None, "instruction_strict": None, "prompt_loose": None, "instruction_loose": None,
        "low": None, "high": None, "prompts": 0, "instructions": 0,
    }  # fmt: skip


def row(*checks) -> Prompt:
    return Prompt.from_row({"prompt": "x", "checks": list(checks)})


def test_checks_that_ask_a_judge_are_left_out_and_a_row_without_others_is_none():
    asked = Requirement("is kind", "unkind", True, None, "must").to_row()
    assert [check.spec["kind"] for check in verifiable(row(asked, LOWER.to_row()), "row 1")] == ["lower"]
    for checks in ([asked], []):
        with pytest.raises(RowError, match="row 1: the row has no instruction that a program can check"):
            verifiable(row(*checks), "row 1")
    with pytest.raises(RowError, match="unknown kind of instruction, found 'lowr'; the nearest is lower"):
        verifiable(row({**LOWER.to_row(), "spec": {"kind": "lowr"}}), "row 1")
