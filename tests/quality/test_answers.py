"""Right answers: the last line decides, and a verifier's word stands above it."""

from __future__ import annotations

import pytest

from nemo_sdg.quality.answers import is_right, last_line, verdict


@pytest.mark.parametrize(
    "response, answer, right",
    [
        ("42", "42", True),
        ("first 40 + 2\n42\n\n", "42", True),
        ("  42 \t\r\n", "42", True),
        ("42\nor 43", "42", False),
        ("The answer is 42", "42", False),
        ("042", "42", False),
        ("", "42", False),
        ("\n \n", "42", False),
        ("42\n<extra_id_1>User\nand now?", "42", True),
        ("42</s>", "42", True),
    ],
)
def test_the_last_line_decides(response, answer, right):
    assert is_right(response, answer) is right


def test_last_line_of_nothing_is_empty():
    assert last_line("") == ""


@pytest.mark.parametrize(
    "columns, said",
    [
        ({}, None),
        ({"answer": "5"}, True),
        ({"answer": "6"}, False),
        ({"answer": 5}, None),
        ({"answer": "5", "correct": False}, False),
        ({"correct": True}, True),
        ({"correct": "yes"}, None),
    ],
)
def test_a_verifier_decides_before_the_answer_is_compared(columns, said):
    assert verdict("so it is\n5", columns) is said
