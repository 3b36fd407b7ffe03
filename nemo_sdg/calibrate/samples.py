"""What was timed, in the words of the plan's formulas. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_sdg.models.shapes import NemotronShape


@dataclass(frozen=True)
class Times:
    """A decode step."""

    seconds: float
    shape: NemotronShape
    dtype: str
    rows: int
    context: float
    """Keys of a row in the mean."""


@dataclass(frozen=True)
class PassTimes:
    """A prefill or scoring pass; the fields behind `dtype` are arguments of `plan.timing.pass_s`."""

    seconds: float
    shape: NemotronShape
    dtype: str
    tokens: float
    pieces: float
    seen: float
    read: float
    rows: float


@dataclass(frozen=True)
class StepTimes:
    """An optimizer step; the fields behind `dtype` are arguments of `plan.timing.step_s`."""

    seconds: float
    shape: NemotronShape
    dtype: str
    rows: int
    width: int
    pieces: float
    micro_batches: int
