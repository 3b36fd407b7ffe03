"""What a judged row says of its checks. `broken`: the reasons of those that it breaks; `unclear`: of those that nobody can
tell; `correct`: whether it follows the instructions that a program can check."""

from __future__ import annotations

from typing import Any, Mapping

BROKEN, UNCLEAR, CORRECT = "broken", "unclear", "correct"
JUDGED_COLUMNS = (BROKEN, UNCLEAR, CORRECT)
"""Columns that are about one response, and not about another one to the same prompt."""
OFF_TOPIC, LANGUAGE = "off topic", "not in the language of the brief"
"""Reasons that every brief has."""
NO_REASONS = "the column broken is no list of reasons"


def broken_checks(columns: Mapping[str, Any]) -> list[str]:
    """Why a row is to be dropped; empty where nothing is broken, or nobody has checked."""
    found = columns.get(BROKEN)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(reason, str) and reason for reason in found):
        return [NO_REASONS]
    return found
