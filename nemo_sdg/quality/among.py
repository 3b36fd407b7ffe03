"""The rules that compare rows with each other, on a few numbers per row.

What is known of a row: its scalar, its length, and 64-bit hashes of its id, its conversation and its text. A prompt is
its conversation, whatever its id: one that comes again in a later wave of a round has another.
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter

import numpy as np

from nemo_sdg.config import Select
from nemo_sdg.errors import UserError
from nemo_sdg.quality.balance import over_share, within_target
from nemo_sdg.quality.duplicates import NearDuplicates
from nemo_sdg.quality.ranking import cut, length_slope, without_length
from nemo_sdg.quality.rules import may_teach
from nemo_sdg.quality.text import NOTHING, Tokens, hash64
from nemo_sdg.records import Scored

SUPERSEDED = "another version of it is better"
SAME_TEXT = "same text as a better one"
NEAR_DUPLICATE = "near duplicate of a better one"
_ANEW = (SUPERSEDED, SAME_TEXT, "below percentile ", "not among the best ", "beyond the target of ")
_PASSED = -1


def decided_anew(reason: str | None) -> bool:
    """Whether a row was dropped beside others, by what is known of each row in numbers: that it would be again with other
    settings follows from these alone."""
    return reason is not None and reason.startswith(_ANEW)


def above_share(column: str, share: float) -> str:
    """The reason of rule 8."""
    return f"{column} above its share of {share:g}"


class Among:
    """`add` each row with what the rules of a row alone said of it, then `settle`; more rows may come, to settle again."""

    def __init__(self, settings: Select) -> None:
        self._settings = settings
        self._scalars, self._characters, self._copied = array("d"), array("q"), array("b")
        self._names, self._prompts, self._texts = array("q"), array("q"), array("q")
        self._samples, self._codes = array("q"), array("i")
        self._reasons: dict[str, int] = {}
        self._kinds, self._kind_names = array("i"), {None: 0}
        self._groups = {column: (array("i"), {}) for column in settings.balance}
        threshold = settings.near_duplicates
        self.near_duplicates = None if threshold is None else NearDuplicates(threshold, settings.shingle)
        self._better: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def add(
        self,
        row: Scored,
        scalar: float,
        reason: str | None,
        copied: bool,
        question: Tokens | None,
        response: Tokens | None,
    ) -> None:
        """The next row; its texts are wanted where near duplicates are looked for and no rule has dropped it."""
        self._scalars.append(scalar)
        self._characters.append(len(row.response))
        self._copied.append(copied)
        self._names.append(hash64(row.id))
        self._prompts.append(hash64("\x1f".join(part for turn in row.messages for part in turn.values())))
        self._texts.append(hash64(row.response))
        self._samples.append(min(row.sample, 2**63 - 1))
        self._codes.append(_PASSED if reason is None else self._code(reason))
        kind = row.extra.get("kind")
        kind = kind if isinstance(kind, str) else None
        self._kinds.append(self._kind_names.setdefault(kind, len(self._kind_names)))
        for column, (numbers, known) in self._groups.items():
            value = row.extra.get(column)
            # A text stands for itself, anything else for its JSON, as a tuple so that no text is taken for it.
            name = value if isinstance(value, str) else (json.dumps(value, sort_keys=True),)
            numbers.append(known.setdefault(name, len(known)))
        if self.near_duplicates is not None:
            gone = reason is not None
            self.near_duplicates.add(row.id, NOTHING if gone else question, NOTHING if gone else response)

    def settle(self, superseded: np.ndarray | None = None) -> None:
        """Decides on the rows that there are.

        Args:
            superseded: of each row, whether another version of its answer is better.
        """
        settings = self._settings
        # Copies, for an array that others look into cannot grow.
        self.scalars, self.characters = np.array(self._scalars), np.array(self._characters, np.int64)
        self.names, self.codes = np.array(self._names, np.int64), np.array(self._codes, np.int32)
        self.ranks, self._better = self.scalars, {}
        if superseded is not None:
            self._drop_versions(superseded)
        passed = np.flatnonzero(self.codes == _PASSED)
        if settings.length_free:
            mean, slope = length_slope(self.scalars[passed], self.characters[passed])
            self.ranks = without_length(self.scalars, self.characters, mean, slope)
        if settings.percentile is not None and len(passed):
            low = self.ranks[passed] < cut(self.ranks[passed], settings.percentile)
            self.codes[passed[low]] = self._code(f"below percentile {settings.percentile:g}")
            passed = passed[~low]
        samples = np.array(self._samples, np.int64)
        best_first = passed[np.lexsort((self.names[passed], samples[passed], -self.ranks[passed]))]
        best_first = self._from_the_best(best_first)
        groups = {column: np.array(numbers, np.int32) for column, (numbers, _) in self._groups.items()}
        gone, left = within_target(groups, settings.balance, best_first, settings.target)
        if len(left) != settings.target:  # of the whole target each group has its part already
            gone |= over_share(groups, settings.balance, left)
        for row, column in gone.items():
            self.codes[row] = self._code(above_share(column, settings.balance[column]))
        if settings.target is not None:
            beyond = best_first[self.codes[best_first] == _PASSED][settings.target :]
            self.codes[beyond] = self._code(f"beyond the target of {settings.target}")
        self._texts_of_reasons = list(self._reasons)
        self._refuse_copies()

    @property
    def kept(self) -> np.ndarray:
        """Whether each row is kept."""
        return self.codes == _PASSED

    @property
    def copies(self) -> float:
        """The share of the kept rows that copy the user's own."""
        kept = self.kept
        return float(np.count_nonzero(np.array(self._copied, np.int8)[kept]) / max(np.count_nonzero(kept), 1))

    def kinds(self, rows: np.ndarray) -> Counter[str]:
        """How many of these rows are of each kind, in the order in which kinds came."""
        numbers, counts = np.unique(np.array(self._kinds, np.int32)[rows], return_counts=True)
        names = list(self._kind_names)
        return Counter({names[number]: int(count) for number, count in zip(numbers, counts) if number})

    def reasons(self) -> Counter[str]:
        """How many rows are dropped for each reason, that of the first row first, however often it was settled before."""
        codes, first, counts = np.unique(self.codes, return_index=True, return_counts=True)
        order = [place for place in np.argsort(first) if codes[place] != _PASSED]
        return Counter({self._texts_of_reasons[codes[place]]: int(counts[place]) for place in order})

    def reason(self, row: int) -> str | None:
        """Why a row is dropped."""
        code = self.codes[row]
        return None if code == _PASSED else self._texts_of_reasons[code]

    def better(self, row: int) -> str | None:
        """The id of the kept row that this one is a near duplicate of."""
        return self.near_duplicates.name(self._better[row]) if row in self._better else None

    def _drop_versions(self, superseded: np.ndarray) -> None:
        """Rule 2. What stands in a row is said of it whichever version it is; how good it is, only of the best."""
        teaches = np.array([may_teach(reason) for reason in self._reasons] + [True])  # the last one is of _PASSED
        self.codes[superseded & teaches[self.codes]] = self._code(SUPERSEDED)

    def _from_the_best(self, best_first: np.ndarray) -> np.ndarray:
        """Rule 7; the rows that are left, in the same order."""
        settings = self._settings
        if not (settings.unique or settings.per_prompt is not None or self.near_duplicates is not None):
            return best_first
        if self.near_duplicates is not None:
            self.near_duplicates.settle(best_first)
        prompts, texts = np.array(self._prompts, np.int64), np.array(self._texts, np.int64)
        both = np.stack([prompts, texts], axis=1)[best_first]
        _, prompt_of = np.unique(both[:, 0], return_inverse=True)
        _, text_of = np.unique(both, axis=0, return_inverse=True)
        kept_of, seen = np.zeros(len(best_first), np.int32), np.zeros(len(best_first), np.bool_)
        limit = math.inf if settings.per_prompt is None else settings.per_prompt
        for row, prompt, text in zip(best_first, prompt_of.reshape(-1), text_of.reshape(-1)):
            reason = None
            if settings.unique and seen[text]:
                reason = SAME_TEXT
            elif self.near_duplicates is not None and (other := self.near_duplicates.like(int(row))) is not None:
                reason = NEAR_DUPLICATE
                self._better[int(row)] = other
            elif kept_of[prompt] >= limit:
                reason = f"not among the best {settings.per_prompt} of its prompt"
            if reason is not None:
                self.codes[row] = self._code(reason)
                continue
            seen[text] = True
            kept_of[prompt] += 1
            if self.near_duplicates is not None:
                self.near_duplicates.keep(int(row))
        return best_first[self.codes[best_first] == _PASSED]

    def _code(self, reason: str) -> int:
        return self._reasons.setdefault(reason, len(self._reasons))

    def _refuse_copies(self) -> None:
        most = self._settings.maximum_copies
        if most is not None and self.copies > most:
            raise UserError(
                "too many of the kept rows copy your own", where=self._settings.likeness,
                found=f"{self.copies:.4f} of them", expected=f"at most select.maximum_copies = {most:g}",
                way_out="raise it, or generate prompts that are further from your rows",
            )  # fmt: skip
