"""What a patch is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Patch:
    """How one promise is broken."""

    promise: str
    """What the project promises, in one sentence."""
    file: str
    """From the root of the repository."""
    old: str
    """Stands exactly once in the file."""
    new: str
    test: str
    """The test that must turn red: FILE::FUNCTION, or one case of it, FILE::FUNCTION[CASE]."""
