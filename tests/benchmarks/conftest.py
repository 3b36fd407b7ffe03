"""The models that all benchmarks of the engine run, and the table that they fill."""

from __future__ import annotations

import platform

import pytest
import torch
from benchmarks import workload
from benchmarks.bench import ROUNDS, SLOTS, THREADS
from benchmarks.measuring import BY_PROCESSOR, Table


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return workload.make_folders(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session")
def table():
    machine = f"{THREADS} threads of {platform.processor() or platform.machine()}, fp32, torch {torch.__version__}"
    clock = ", by the processors' time" if BY_PROCESSOR else ""
    size = workload.shape().num_parameters / 1e6
    made = Table(f"engine, {size:.1f}M parameters, {SLOTS} slots, {ROUNDS} rounds in turn, {machine}{clock}")
    yield made
    if made.lines:
        made.show()
