"""Which version of an answer is the best, and what each pass of revision won: on a few numbers per row.

Of an answer and its revisions the best is the one that passes, or else has the highest scalar; of equals the first.
Memory is 21 bytes a row.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass

import numpy as np

from nemo_sdg.config.selection import Select
from nemo_sdg.quality.revision import good_enough, root_of
from nemo_sdg.quality.rules import scalarise
from nemo_sdg.quality.text import hash64
from nemo_sdg.records import Scored


@dataclass(frozen=True)
class Gain:
    """What one pass of revision won."""

    asked: int
    better: int
    """Answers of which a version of this pass is the best so far."""
    accepted: int
    """Answers that pass now and did not before."""
    before: float
    """Mean scalar of the answers that were asked for again, in their best versions before the pass."""
    after: float
    """The same, with the pass."""


class Versions:
    """`add` every row; rows are numbered from 0 in their order."""

    def __init__(self, settings: Select) -> None:
        self._settings = settings
        self._roots, self._scalars, self._good, self._passes = array("q"), array("d"), array("b"), array("i")

    def __len__(self) -> int:
        return len(self._roots)

    def add(self, row: Scored, revision: int = 0) -> None:
        """The next row, as it was scored; `revision` is the pass that it comes from."""
        self._roots.append(hash64(root_of(row)))
        self._scalars.append(scalarise(row.scores, self._settings.weights))
        self._good.append(good_enough(row, self._settings))
        self._passes.append(revision)

    def superseded(self) -> np.ndarray:
        """Of each row, whether another version of its answer is better."""
        older = np.ones(len(self), np.bool_)
        older[self._best(np.arange(len(self)))[1]] = False
        return older

    def best(self) -> np.ndarray:
        """The best version of each answer, in the order of the first versions."""
        roots, best = self._best(np.arange(len(self)))
        _, first = np.unique(np.array(self._roots, np.int64), return_index=True)
        return best[np.argsort(first)]

    def gains(self, passes: int) -> list[Gain]:
        """What each of so many passes won over those before it."""
        by_pass, found = np.array(self._passes, np.int32), []
        in_order = np.argsort(by_pass)  # the first of equals is that of the earlier pass
        ends = np.searchsorted(by_pass[in_order], np.arange(passes + 1), side="right")
        good = np.array(self._good, np.bool_)
        for start, end in zip(ends, ends[1:]):
            asked = np.unique(np.array(self._roots, np.int64)[in_order[start:end]])
            old, new = (self._of(asked, in_order[:until]) for until in (start, end))
            won = Gain(
                asked=len(asked),
                better=int(np.count_nonzero(new != old)),
                accepted=int(np.count_nonzero(good[new] & ~good[old])),
                before=self._mean(old),
                after=self._mean(new),
            )
            found.append(won)
        return found

    def _of(self, roots: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The best versions, among some rows, of the answers with these roots; each of them is there."""
        there, best = self._best(rows)
        return best[np.searchsorted(there, roots)]

    def _best(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(roots, the best version of each) of some rows; of equals the one that comes first in `rows`."""
        roots, scalars = np.array(self._roots, np.int64)[rows], np.array(self._scalars)[rows]
        poor = ~np.array(self._good, np.bool_)[rows]
        order = np.lexsort((np.where(np.isfinite(scalars), -scalars, np.inf), poor, roots))
        first = np.flatnonzero(np.diff(roots[order], prepend=~roots[order[:1]]))
        return roots[order[first]], rows[order[first]]

    def _mean(self, rows: np.ndarray) -> float:
        scalars = np.array(self._scalars)[rows]
        scalars = scalars[np.isfinite(scalars)]
        return math.fsum(scalars) / len(scalars) if len(scalars) else 0.0
