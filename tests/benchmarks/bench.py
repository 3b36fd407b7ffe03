"""How much is measured, and the rank that it is measured on. All of it can be set from outside:

BENCH_QUICK=1           one small round, to see that everything runs; its ratios say little
BENCH_SLOTS             rows that are decoded at once (32)
BENCH_THREADS           threads of a rank (2)
BENCH_CLOCK=processor   count the processors' time; see `measuring.timed`
"""

from __future__ import annotations

import os
from typing import Any, Callable

import torch
from benchmarks import workload
from ranks import run_ranks

from nemo_sdg.parallel.mesh import Mesh

QUICK = bool(os.environ.get("BENCH_QUICK"))
SLOTS = int(os.environ.get("BENCH_SLOTS", "32"))
THREADS = int(os.environ.get("BENCH_THREADS", "2"))
ROUNDS = 1 if QUICK else 5
NUM_PROMPTS = 64 if QUICK else workload.NUM_PROMPTS


def one_rank(work: Callable[..., Any], *args: Any) -> Any:
    """`work(mesh, *args)` on a forked rank with all threads."""

    def run(mesh: Mesh) -> Any:
        torch.set_num_threads(THREADS)
        return work(mesh, *args)

    return run_ranks(run, timeout_s=3600)[0]
