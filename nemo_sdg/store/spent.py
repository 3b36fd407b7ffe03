"""The time that a round's candidates have taken, over all starts of the command, in `spent.json`.

It is committed at most every ten seconds while rows come, so a kill loses no more; what a kill threw away was spent too.
Nothing that a run hands on depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from nemo_sdg.store.seals import commit_json, read_json

FILE = "spent.json"
EVERY_S = 10.0
"""Seconds between two commits."""


class Spent:
    """A clock that goes on where the last start left it. One process holds it, the run's writer."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = folder / FILE, clock
        self._before: float = (read_json(self._file) or {}).get("hours", 0.0)
        self._began = self._committed = clock()

    @property
    def hours(self) -> float:
        return self._before + (self._clock() - self._began) / 3600

    def note(self, *, now: bool = False) -> None:
        """Commits the time, if the last commit is long enough ago or `now` asks for it; cheap enough for every row."""
        if now or self._clock() - self._committed >= EVERY_S:
            self._committed = self._clock()
            commit_json(self._file, {"hours": self.hours})
