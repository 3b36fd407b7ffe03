"""Exact match on held-out prompts: the last non-empty line of a greedy response is the right answer, or it is not."""

from __future__ import annotations

from collections.abc import Iterable

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


def exact_match(pairs: Iterable[tuple[str, str]]) -> dict[str, float | int | None]:
    """Share of (response, answer) pairs that are right: {"exact_match": 0 to 1, "n": pairs}; None over no pairs."""
    outcomes = [is_right(response, answer) for response, answer in pairs]
    return {"exact_match": sum(outcomes) / len(outcomes) if outcomes else None, "n": len(outcomes)}
