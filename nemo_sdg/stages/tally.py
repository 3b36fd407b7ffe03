"""What came into a folder of datasets and what became of it."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from nemo_sdg.records import Fault
from nemo_sdg.stages.examples import CONFIGS, SPLITS, Example
from nemo_sdg.store import conserved


class Tally:
    """What came in and what became of it, by kind of dataset."""

    def __init__(self) -> None:
        self._kinds = {
            kind: {"rows_in": 0, "kept": 0, "dropped": Counter(), "faulty": Counter(), "rows": dict.fromkeys(SPLITS, 0)}
            for kind in CONFIGS
        }

    def add(self, kind: str, made: list[Example] | str | Fault) -> None:
        """Counts one thing that came in: its examples, why it has none, or why it was set aside."""
        told = self._kinds[kind]
        told["rows_in"] += 1
        if isinstance(made, Fault):
            told["faulty"][re.split(r", found |, expected |: ", made.reason)[0]] += 1
        elif isinstance(made, str):
            told["dropped"][made] += 1
        else:
            told["kept"] += 1
            for example in made:
                told["rows"][example.split] += 1

    def totals(self) -> dict[str, Any]:
        """All counts, after checking that nothing was lost."""
        told = {kind: {**counts} for kind, counts in self._kinds.items()}
        for counts in told.values():
            counts |= {key: dict(counts[key].most_common()) for key in ("dropped", "faulty")}
        return {kind: conserved(counts) for kind, counts in told.items()}
