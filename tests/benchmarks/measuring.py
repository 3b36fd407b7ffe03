"""Runs that are compared in turn, and the table that says what came out beside what is required."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping

BY_PROCESSOR = os.environ.get("BENCH_CLOCK") == "processor"


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds by the clock, and what the work returned.

    BENCH_CLOCK=processor counts those that the processors spent on this process, so that a machine which does other
    things too gives usable ratios; with one thread only, as one that waits for another counts as if it worked.
    """
    clock = time.process_time if BY_PROCESSOR else time.perf_counter
    began = clock()
    result = work()
    return clock() - began, result


def in_turn(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each run's number in each round: A B C, C B A, A B C ...

    The order turns round, because whoever comes second may find the machine in another state.
    """
    numbers: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            numbers[name].append(runs[name]())
    return numbers


def ratio(above: list[float], below: list[float]) -> float:
    """The median of the ratios of pairs that were measured in the same round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


@dataclass
class Table:
    """Lines of what was measured beside what is required. Ratios are printed, never asserted."""

    title: str
    lines: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, what: str, measured: str, required: str = "") -> None:
        self.lines.append((what, measured, required))

    def show(self) -> None:
        what, measured, required = (max(map(len, column)) for column in zip(("", "measured", "required"), *self.lines))
        print(f"\n{self.title}\n  {'':<{what}}  {'measured':>{measured}}  {'required':>{required}}")
        for line in self.lines:
            print(f"  {line[0]:<{what}}  {line[1]:>{measured}}  {line[2]:>{required}}")
        print(end="", flush=True)
