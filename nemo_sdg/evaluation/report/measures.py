"""What was measured on held-out rows, as rows of a table: before the run, and after each round.

A state is what `evaluation.json` says of one point of time. What it does not say is left out, so that a run of an
earlier version is told as far as it goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_sdg.config import ATTRIBUTES
from nemo_sdg.evaluation.ablation import ARMS
from nemo_sdg.evaluation.report.result import Result
from nemo_sdg.store.fits import POLICY, REWARD, accepted

State = Mapping[str, Any]
_INSTRUCTIONS = {
    "prompt_strict": "prompts, strict", "instruction_strict": "single instructions, strict",
    "prompt_loose": "prompts, loose", "instruction_loose": "single instructions, loose",
}  # fmt: skip
SECTIONS = ("Chat", "Chat Hard", "Safety", "Reasoning", "Overall")


@dataclass(frozen=True)
class Measure:
    """One figure over the states; higher is better."""

    name: str
    values: list[float | None]
    """Before the run, after round 0, after round 1, ...; None where it was not measured or is not defined."""
    intervals: list[tuple[float, float] | None]
    """Of each value, where there is one."""
    stands: int
    """Which state is that of the newest model that may go on (`store.fits.accepted`); 0 where the gate refused all."""

    @property
    def refused(self) -> bool:
        return self.stands == 0 and len(self.values) > 1

    @property
    def gain(self) -> float | None:
        """From the first state to the one that stands."""
        first, last = self.values[0], self.values[self.stands]
        return None if first is None or last is None else last - first

    def cells(self) -> list[str]:
        """For example `0.560 (0.511 to 0.608)`, one per state."""
        return [shown(value, interval) for value, interval in zip(self.values, self.intervals)]

    def gained(self) -> str:
        return "-" if self.gain is None else "refused" if self.refused else f"{self.gain:+.3f}"


def shown(value: float | None, interval: tuple[float, float] | None = None) -> str:
    said = "-" if value is None else f"{value:.3f}"
    return said if interval is None else f"{said} ({interval[0]:.3f} to {interval[1]:.3f})"


def states(result: Result) -> list[State]:
    """Before the run, then after each evaluated round; empty where nothing was evaluated."""
    if not result.evaluations:
        return []
    by_round = [state for _, state in sorted(result.evaluations.items())]
    return [by_round[0].get("before") or {}, *by_round]


def measures(result: Result) -> list[Measure]:
    """Everything of which more is better."""
    return list(_all(states(result)))


def _all(some: Sequence[State]) -> Iterator[Measure]:
    if not some:
        return
    if all(state.get("policy") for state in some):
        yield _measure(f"policy: exact match, {some[-1]['policy']['n']} prompts", some, "policy", "exact_match")
    yield from _if_there("after SFT alone: exact match", some, "sft", "exact_match")
    for key, name in _INSTRUCTIONS.items():
        yield from _if_there(f"policy: instructions followed, {name}", some, "instructions", key)
    yield from _if_there("policy: wins against the start", some, "win_rate", "win_rate")
    yield from _if_there("policy: wins, of equal length", some, "win_rate", "controlled", "win_rate")
    if all(state.get("reward") for state in some):
        for name in attributes(some):
            yield _measure(f"reward: {name}, Spearman", some, "reward", name, "spearman")
    for section in SECTIONS:
        yield from _if_there(f"RewardBench: {section}", some, "rewardbench", section)


def attributes(some: Sequence[State]) -> list[str]:
    """The five, and the user's own labels."""
    told = some[-1].get("reward") or {}
    return [*ATTRIBUTES, *(name for name in told if name not in ATTRIBUTES)]


def length_only(some: Sequence[State]) -> Mapping[str, float]:
    """What a rule that prefers the longer answer gets in RewardBench, by section."""
    told = (state.get("rewardbench") or {} for state in reversed(some))
    return next((found["length_only"] for found in told if found.get("length_only")), {})


def ablation_rows(result: Result) -> list[tuple[str, str, str]]:
    """(set of rows, rows in it, mean with its interval over seeds) of each arm, then what selection is worth beside the others."""
    told = result.ablation
    if told is None:
        return []
    rows = [(arm, f"{told['rows'][arm]:,}", _mean(told["arms"][arm])) for arm in ARMS]
    return rows + [(f"{ARMS[0]} - {arm}", "", _mean(told["differences"][arm], "+")) for arm in ARMS[1:]]


def _mean(one: Mapping[str, float | None], sign: str = "") -> str:
    mean, low, high = (None if one[key] is None else f"{one[key]:{sign}.3f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})" if low is not None else str(mean)


def _if_there(name: str, some: Sequence[State], *path: str) -> Iterator[Measure]:
    made = _measure(name, some, *path)
    if any(value is not None for value in made.values):
        yield made


def _measure(name: str, some: Sequence[State], *path: str) -> Measure:
    kind = REWARD if path[0] in ("reward", "rewardbench") else POLICY
    stands = max((place for place, state in enumerate(some) if place and accepted(state, kind)), default=0)
    values = [number(at(state, *path)) for state in some]
    return Measure(name, values, [_interval(state, path) for state in some], stands)


def _interval(state: State, path: Sequence[str]) -> tuple[float, float] | None:
    """`low` and `high` stand beside the value."""
    beside = at(state, *path[:-1])
    if path[0] == "instructions" and path[-1] != "prompt_strict":
        return None  # the interval there is of prompts, counted strictly
    if not isinstance(beside, Mapping) or number(at(state, *path)) is None:
        return None
    low, high = number(beside.get("low")), number(beside.get("high"))
    return None if low is None or high is None else (low, high)


def at(state: Any, *path: str) -> Any:
    """What stands there, or None."""
    for name in path:
        state = state.get(name) if isinstance(state, Mapping) else None
    return state


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
