"""What a selection says of itself: lengths, kinds, variety, likeness to the user's own rows."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_sdg.config import Select
from nemo_sdg.quality import references, variety
from nemo_sdg.quality.ranking import length_honesty
from nemo_sdg.quality.text import Tokens, hash64, tokens
from nemo_sdg.records import Scored

if TYPE_CHECKING:
    from nemo_sdg.quality.among import Among

_KINDS = 20
"""Kinds that are told, the most frequent ones."""


class Report:
    """Says which rows it wants to see, and then has the figures."""

    def __init__(self, settings: Select) -> None:
        self._likeness = settings.likeness
        self._prompts_alone, self._real = _real_texts(settings.likeness) if settings.likeness else (False, [])

    def expect(self, among: Among) -> None:
        """Chooses the rows that the figures are of: as many of all as of the kept ones."""
        self._among = among
        self._texts: tuple[dict[int, Tokens], dict[int, Tokens]] = ({}, {})
        self._compared: tuple[dict[int, Tokens], dict[int, Tokens]] = ({}, {})
        kept = np.flatnonzero(among.kept)
        count = min(len(kept), variety.SAMPLE)
        self._sample = tuple(
            dict.fromkeys(rows[np.argsort(among.names[rows], kind="stable")[:count]].tolist())
            for rows in (np.arange(len(among)), kept)
        )

    def wants(self, index: int) -> bool:
        """Whether a row, by its number, has to be seen."""
        return index in self._sample[0] or index in self._sample[1]

    def see(self, index: int, row: Scored) -> None:
        """A row that it wants; others say nothing here."""
        for sample, texts, compared in zip(self._sample, self._texts, self._compared):
            if index in sample:
                texts[index] = tokens(row.response)
                if self._likeness:
                    said = row.messages[-1]["content"] if self._prompts_alone else row.response
                    compared[index] = tokens(said)

    def figures(self) -> dict[str, Any]:
        """`length` (see `length_honesty`) and `variety`; without a kept row both are empty."""
        if not self._among.kept.any():
            return {"length": {}, "variety": {}}
        characters, kept = self._among.characters, self._among.kept
        told = variety.compare(*map(self._in_order, self._sample, self._texts))
        for side, rows in enumerate((characters, characters[kept])):
            figures = told["before" if side == 0 else "after"]
            figures["characters"] = dict(zip(("least", "median", "most"), np.percentile(rows, (0, 50, 100)).tolist()))
            figures["kinds"] = dict(self._among.kinds(np.flatnonzero(kept | (side == 0))).most_common(_KINDS))
            if self._likeness:
                figures["auc"] = variety.likeness(self._in_order(self._sample[side], self._compared[side]), self._real)
        if self._likeness:
            told["copies"] = round(self._among.copies, 4)
        honesty = {name: round(share, 4) for name, share in length_honesty(characters, kept).items()}
        return {"length": honesty, "variety": {"rows": len(self._texts[1]), **told}}

    @staticmethod
    def _in_order(sample: Iterable[int], texts: Mapping[int, Tokens]) -> list[Tokens]:
        return [texts[index] for index in sample]


def _real_texts(file: str) -> tuple[bool, list[Tokens]]:
    """Whether the user's rows are prompts alone, which then are compared; and a sample of their texts."""
    answers, questions = [], []
    for row in references.read(file):
        answers.append(next(iter(row.answers + row.texts), None))
        questions.append(next(iter(row.questions), None))
    prompts_alone = not any(answers)
    given = [text for text in (questions if prompts_alone else answers) if text]
    return prompts_alone, [tokens(text) for text in heapq.nsmallest(variety.SAMPLE, given, key=hash64)]
