"""Which of all scored responses are kept. The order of the rules, of which the first that drops a row gives its reason:

Each row alone
 0. personal data (`pii`); what is redacted is redacted here
 1. a text of an evaluation file (`decontaminate`)
 2. of an answer and its revisions, only the best version
 3. a text that can be trained on, that the model ended itself, and that breaks no check (`broken`)
 4. minimum, maximum and minimum_scalar of the scores
 5. the researcher's own rules, in their order
What stands in a row is looked at before how good it is: a poor row still teaches a reward model (`rules.may_teach`).

Among those that passed, by rank: the scalar, or with `length_free` what is left of it without length
 6. percentile: at or above it, of all that have passed rules 1 to 5
 7. from the best on, each against those kept so far: unique, near_duplicates, per_prompt; of equals the earlier sample
    comes first, then the one whose id has the smaller hash
 8. balance, of the target where there is one
 9. target: the best so many

Two passes over the same rows, so that no row has to stay in memory. Nothing depends on the order of the rows. More rows
may follow after a `settle`: what is known of the earlier ones is kept, and they are not read again until the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from traceback import clear_frames
from typing import Any

import numpy as np

from nemo_sdg.config.selection import Select
from nemo_sdg.errors import StoreError, UserError
from nemo_sdg.quality.among import Among
from nemo_sdg.quality.own import Context, Rule, first_reason
from nemo_sdg.quality.personal import personal, redacted
from nemo_sdg.quality.references import References
from nemo_sdg.quality.report import Report
from nemo_sdg.quality.rules import LEAKED, checks, complete, scalarise, thresholds, usable
from nemo_sdg.quality.text import Tokens, hash64, tokens
from nemo_sdg.quality.versions import Gain, Versions
from nemo_sdg.records import Decision, Scored

_of_prompt = lru_cache(maxsize=32)(tokens)
"""The answers to a prompt come one after the other."""
OWN_COLUMNS = frozenset(("kept", "reason", "scalar", "duplicate_of", "leaked_from", "scalar_length_free"))
"""Columns that a decision may add; those of an earlier one do not stay. `redacted`, which is of the text, does."""


def decide(rows: Sequence[Scored], settings: Select, rules: Sequence[Rule] = ()) -> list[Decision]:
    """One decision per row, in the rows' order; a row that is dropped has a reason."""
    selector = Selector(settings, rules, versions=True)
    for row in rows:
        selector.add(row)
    selector.settle()
    return list(selector.decisions(rows))


class Selector:
    """`add` every row, `settle`, then take the `decisions` on the same rows in the same order, and the `totals`.

    Or ask of each row, by its number from 0, whether it `wants` to see it: else its `verdict` is all that there is to say.
    """

    def __init__(self, settings: Select, rules: Sequence[Rule] = (), *, versions: bool = False) -> None:
        """
        Args:
            versions: whether there may be revisions among the rows, so that some are versions of one answer.
        """
        self._settings, self._rules = settings, tuple(rules)
        self._leaks = References(settings.decontaminate, settings.ngram) if settings.decontaminate else None
        self._real = References([settings.likeness], settings.ngram) if settings.likeness else None
        self._among, self._versions = Among(settings), Versions(settings) if versions else None
        self._leaked: dict[int, str] = {}
        self._failed: dict[int, UserError] = {}
        self._rewritten: set[int] = set()
        self._report = Report(settings)

    def __len__(self) -> int:
        return len(self._among)

    def add(self, row: Scored, revision: int = 0) -> None:
        """The next row; `revision` is the pass that it comes from."""
        if self._versions is not None:
            self._versions.add(row, revision)
        given, row = row, redacted(row, self._settings)
        if row is not given or not OWN_COLUMNS.isdisjoint(row.extra):
            self._rewritten.add(len(self._among))
        scalar = scalarise(row.scores, self._settings.weights)
        reason, poor = personal(row, self._settings), self._poor(row)
        question = response = None
        if reason is None and (self._leaks or (poor is None and (self._real or self._among.near_duplicates))):
            *before, question = [_of_prompt(turn["content"]) for turn in row.messages]
            response = tokens(row.response)
            if self._leaks is not None:
                reason = self._leak(row, [*before, question, response])
        reason = reason or poor
        if reason is None and self._rules:
            reason = self._own_reason(row, scalar)
        copied = reason is None and self._real is not None and self._real.copied(question, response)
        self._among.add(row, scalar, reason, copied, question, response)

    @property
    def num_kept(self) -> int:
        """Rows that are kept. Asked when all are settled."""
        return int(np.count_nonzero(self._among.kept))

    def settle(self) -> None:
        """Decides on the rows that there are. Raises UserError when more of them than allowed copy the user's own, or a
        rule failed."""
        superseded = None if self._versions is None else self._versions.superseded()
        for index, error in self._failed.items():
            if not superseded[index]:
                raise error
        self._among.settle(superseded)
        self._report.expect(self._among)

    def decisions(self, rows: Iterable[Scored]) -> Iterator[Decision]:
        """A decision for each row. Raises StoreError when these are not the rows that were added."""
        index = -1
        for index, row in enumerate(rows):
            if index >= len(self._among) or hash64(row.id) != self._among.names[index]:
                raise _changed(row.id)
            yield self.decision(index, row)
        if index + 1 != len(self._among):
            raise _changed("none")

    def wants(self, index: int) -> bool:
        """Whether there must be a `decision`: the row is one to be rewritten, or one that the figures are of."""
        return index in self._rewritten or self._report.wants(index)

    def decision(self, index: int, given: Scored) -> Decision:
        """On the row of this number, which this is."""
        row = redacted(given, self._settings) if index in self._rewritten else given
        self._report.see(index, row)
        added, decided = self.verdict(index)
        columns = {key: value for key, value in row.extra.items() if key not in OWN_COLUMNS}
        return Decision(**{**vars(row), "extra": {**columns, **added}, **decided})

    def verdict(self, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """(columns that a row gets, kept and reason and scalar)."""
        added: dict[str, Any] = {}
        if index in self._leaked:
            added["leaked_from"] = self._leaked[index]
        if (better := self._among.better(index)) is not None:
            added["duplicate_of"] = better
        if self._settings.length_free and math.isfinite(rank := float(self._among.ranks[index])):
            added["scalar_length_free"] = rank
        reason, scalar = self._among.reason(index), float(self._among.scalars[index])
        return added, {"kept": reason is None, "reason": reason, "scalar": scalar}

    def totals(self) -> dict[str, Any]:
        """Rows in, kept and dropped by reason; `length` and `variety`. Asked when the decisions are made."""
        dropped = self._among.reasons()
        counts = {"rows_in": len(self), "kept": self.num_kept, "dropped": dict(dropped.most_common()), "faulty": 0}
        return {**counts, **self._report.figures()}

    def gains(self, passes: int) -> list[Gain]:
        """What each of so many passes of revision has won."""
        return [] if self._versions is None else self._versions.gains(passes)

    def _poor(self, row: Scored) -> str | None:
        settings = self._settings
        return (
            usable(row.response)
            or complete(row.finish_reason, settings)
            or next(iter(checks(row.extra, settings)), None)
            or thresholds(row.scores, settings)
        )

    def _own_reason(self, row: Scored, scalar: float) -> str | None:
        """Rule 5. Which version is the best is known when all were seen: until then a failure waits, without the row."""
        try:
            return first_reason(self._rules, row, Context(self._settings, scalar))
        except UserError as error:
            if self._versions is None:
                raise
            if error.__cause__ is not None:
                clear_frames(error.__cause__.__traceback__)
            self._failed[len(self._among)] = error.with_traceback(None)
            return error.what

    def _leak(self, row: Scored, texts: Sequence[Tokens]) -> str | None:
        roles = [*(turn["role"] for turn in row.messages), "assistant"]
        where = self._leaks.leak(list(zip(roles, texts)))
        if where is None:
            return None
        self._leaked[len(self._among)] = where
        return LEAKED


def _changed(name: str) -> StoreError:
    return StoreError("the rows changed while they were read", found=f"row {name}", way_out="run again when they rest")
