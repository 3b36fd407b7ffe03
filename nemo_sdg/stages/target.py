"""How far a round is from its target: what was accepted so far, what is still to come, and when the budget is spent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemo_sdg.config import RunConfig
from nemo_sdg.errors import UserError
from nemo_sdg.store import StageStore
from nemo_sdg.store.waves import wave_parts

if TYPE_CHECKING:
    from nemo_sdg.stages.context import Context

CANDIDATES_A_ROW = 100
"""Responses for each row of the target at most, where `budget.candidates` says nothing."""


@dataclass(frozen=True)
class Progress:
    """After a wave of a round."""

    target: int
    accepted: int
    candidates: int
    """Responses that were asked for, revisions too."""
    tokens: int
    """Generated tokens."""
    hours: float
    """That the candidates have taken in all starts of the command; see `store.spent`."""

    @classmethod
    def of(cls, context: Context, accepted: int) -> Progress:
        """How far the waves up to this one have brought the round, of whose rows so many are accepted."""
        config, folder = context.config, context.run.round(context.round)

        def count() -> list[float]:
            waves = range(context.part.wave + 1)
            parts = [part for wave in waves for part in wave_parts(wave, config.revise.passes)]
            made = [StageStore.finished(part.folder(folder) / "responses").totals for part in parts]
            tokens = sum(totals["tokens"] for totals in made)
            context.spent.note(now=True)
            return [sum(totals["rows_in"] for totals in made), tokens, context.spent.hours]

        return cls(config.select.target, accepted, *context.on_writer(count))

    @property
    def reached(self) -> bool:
        return self.accepted >= self.target

    def line(self) -> str:
        """Where the round stands, and what is still to come if candidates go on to pass as they did."""
        share = self.accepted / max(1, self.candidates)
        said = f"{self.accepted:,} of {self.target:,} rows accepted, {share:.1%} of {self.candidates:,} candidates"
        if self.reached:
            return said
        if not self.accepted:
            return f"{said}; none has passed, so there is no forecast"
        times = (self.target - self.accepted) / self.accepted
        more = f"{math.ceil(times * self.candidates):,} candidates, {math.ceil(times * self.tokens):,} tokens"
        return f"{said}; about {more} and {duration(times * self.hours)} more"

    def check(self, config: RunConfig) -> None:
        """Raises UserError when the budget does not allow another wave."""
        limits = {
            "candidates": (self.candidates, most_candidates(config)),
            "tokens": (self.tokens, config.budget.tokens),
            "hours": (self.hours, config.budget.hours),
        }
        for name, (spent, limit) in limits.items():
            if limit is not None and spent >= limit:
                raise UserError(
                    f"the budget is spent before the target is reached: {self.accepted:,} of {self.target:,} rows accepted",
                    where=f"budget.{name}",
                    found=f"{self.candidates:,} candidates, {self.tokens:,} tokens, {duration(self.hours)}",
                    expected=f"less than {limit:,} {name}",
                    way_out=f"raise budget.{name} and run again, which goes on from here; or ask for less with "
                    "`nemo-sdg fork` (select.target, or looser limits)",
                )


def most_candidates(config: RunConfig) -> int:
    """Responses of a round with a target at most."""
    return config.budget.candidates or CANDIDATES_A_ROW * (config.select.target or 0)


def duration(hours: float) -> str:
    """For example 12 s, 7 min or 3.5 h."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.1f} h"
