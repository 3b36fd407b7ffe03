"""How long the rows of a batch are, readable without torch."""

from __future__ import annotations

MULTIPLE = 8
"""Rows are padded to a multiple of this many tokens."""


def padded(length: int) -> int:
    """Tokens that a row of this length is padded to."""
    return max(MULTIPLE, -(-length // MULTIPLE) * MULTIPLE)
