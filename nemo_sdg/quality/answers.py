"""Whether a response says the right answer, where the prompt's row carries one: no model is asked."""

from __future__ import annotations

from typing import Any, Mapping

END_OF_TURN = ("<extra_id_1>", "</s>")


def last_line(response: str) -> str:
    """The last line that holds more than white space, stripped; "" where there is none."""
    for token in END_OF_TURN:
        # What follows the end of the turn was not said; engines cut it, files of others may not.
        response = response.split(token, 1)[0]
    lines = [line.strip() for line in response.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def is_right(response: str, answer: str) -> bool:
    """Whether the response's last non-empty line, stripped, equals the answer, stripped."""
    return last_line(response) == answer.strip()


def verdict(response: str, columns: Mapping[str, Any]) -> bool | None:
    """What the columns of its row say of a response; None where they say nothing.

    A verifier's `correct` (true or false) decides; else the prompt's `answer` (text) is compared.
    """
    if isinstance(columns.get("correct"), bool):
        return columns["correct"]
    answer = columns.get("answer")
    return is_right(response, answer) if isinstance(answer, str) else None
