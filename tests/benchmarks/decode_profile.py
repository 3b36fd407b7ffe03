"""Where the time of a decode step goes: matrix products, attention, sampling, other tensor work, Python.

torch's profiler gives the time that each operator spends in itself, on the thread that calls it. An operator belongs
to the range that it is in (`ranges`: functions of the engine that run in a range of their own), else to what its name
says.
Python is the rest: the time of a step without the profiler, less the time in all operators of a step under it, each the
median over the steps. The profiler lengthens an operator by some tenths of a microsecond, and what it does between
operators does not count; so Python comes out too small by 0.1 ms or so in a step of 500 operators.
"""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any, Callable, Iterator
from unittest import mock

import torch
from benchmarks.measuring import timed
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

PRODUCTS = ("aten::mm", "aten::addmm", "aten::linear", "aten::matmul", "mkldnn::_linear_pointwise")
ATTENTION = ("aten::bmm", "aten::baddbmm", "aten::scaled_dot_product_attention", "aten::_softmax", "aten::softmax")
ATTENTION += ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_attention_math")
KINDS = ("products", "attention", "sampling", "other", "python")


@dataclass(frozen=True)
class Profile:
    """Seconds of one step by kind, and the operators of `other` that took longest."""

    step: float
    seconds: dict[str, float]
    others: list[tuple[str, float, float]]
    """(name, seconds, calls) of one step."""

    def share(self, kind: str) -> float:
        return self.seconds[kind] / self.step


@contextlib.contextmanager
def ranges(named: dict[str, list[tuple[Any, str]]]) -> Iterator[None]:
    """Inside, functions of the engine (module, attribute) run in a range of the profiler: {"sampling": [...], ...}."""

    def wrapped(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with record_function(kind):
                return function(*args, **kwargs)

        return run

    with contextlib.ExitStack() as stack:
        for kind, functions in named.items():
            for owner, name in functions:
                stack.enter_context(mock.patch.object(owner, name, wrapped(kind, getattr(owner, name))))
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Some builds of the profiler write a line to the terminal each time that they start and stop."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def profile_steps(step: Callable[[], Any], steps: int, wrapped: dict[str, list[tuple[Any, str]]]) -> Profile:
    """Run `step` 2 x `steps` times, with and without the profiler in turn: both see the same machine."""
    walls, profiles = [], []
    with _quiet(), profile(activities=[ProfilerActivity.CPU]):
        step()  # the first use of the profiler takes long
    for _ in range(steps):
        walls.append(timed(step)[0])
        with ranges(wrapped), _quiet(), profile(activities=[ProfilerActivity.CPU]) as profiler:
            step()
        profiles.append(_spent(profiler.events(), wrapped))
    wall = statistics.median(walls)
    kinds = {kind: statistics.median(seconds[kind] for seconds, _ in profiles) for kind in KINDS[:-1]}
    kinds["python"] = wall - statistics.median(sum(seconds.values()) for seconds, _ in profiles)
    most = []
    for name in {name for _, names in profiles for name in names}:
        spent, calls = zip(*(names.get(name, (0.0, 0)) for _, names in profiles))
        most.append((name, statistics.median(spent), statistics.median(calls)))
    return Profile(wall, kinds, sorted(most, key=lambda row: -row[1])[:6])


def _spent(events: Any, wrapped: dict[str, Any]) -> tuple[Counter[str], dict[str, tuple[float, int]]]:
    """Seconds by kind, and seconds and calls of the operators of `other`."""
    seconds: Counter[str] = Counter()
    others: dict[str, tuple[float, int]] = {}
    for event in events:
        if event.device_type == DeviceType.CPU and "::" in event.name:
            spent, kind = event.self_cpu_time_total / 1e6, _kind(event, wrapped)
            seconds[kind] += spent
            if kind == "other":
                before = others.get(event.name, (0.0, 0))
                others[event.name] = (before[0] + spent, before[1] + 1)
    return seconds, others


def _kind(event: Any, wrapped: dict[str, Any]) -> str:
    above = event
    while above is not None:
        if above.name in wrapped:
            return above.name
        above = above.cpu_parent
    return "products" if event.name in PRODUCTS else "attention" if event.name in ATTENTION else "other"
