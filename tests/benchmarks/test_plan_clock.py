"""What the plan says of whole runs beside what they take by the clock on two cores, after `nemo-sdg calibrate`.

Everything by the commands that users type: `calibrate`, then `torchrun` with a rank of one thread on each core. Ratios are
printed, never asserted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.measuring import Table

from nemo_sdg import plan
from nemo_sdg.config import load
from nemo_sdg.evaluation.report.times import read_times

RUNS = {
    "tiny": [],
    "tiny, TP2": ["topology.tp=2"],
    "tiny, PP2": ["topology.pp=2"],
    "tiny, more to do": ["data.prompts_per_round=1024", "sft.steps=120", "sft.micro_batch_size=8", "reward.steps=80"],
}


def _call(*words: str) -> float:
    """A command's seconds by the clock; its output is shown if it fails."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *words], env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return time.perf_counter() - began


@pytest.fixture(scope="module")
def calibration(tmp_path_factory) -> Path:
    rates = tmp_path_factory.mktemp("rates") / "rates.json"
    took = _call("nemo_sdg", "calibrate", str(rates))
    table = Table(f"calibrating; {os.getloadavg()[0]:.1f} processes at work on {os.cpu_count()} cores")
    table.add("s, with the imports", f"{took:.0f}", "60")
    for kind, (count, middle, worst) in json.loads(rates.read_text())["errors"].items():
        table.add(f"{kind} ({count}): median and largest error", f"{100 * middle:.0f} %, {100 * worst:.0f} %")
    table.show()
    return rates


@pytest.mark.parametrize("name", RUNS)
def test_time_of_whole_runs(calibration, tmp_path, name):
    words = [*RUNS[name], f"hardware.calibration={calibration}"]
    made = plan.make(load("tiny", words), world=2)
    took = _call("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "nemo_sdg", "run", "tiny", "--out",
                 str(tmp_path / "run"), *words)  # fmt: skip
    times = read_times(tmp_path / "run")
    said: dict[str, float] = {}
    for count, parts in ((1, made.once), (made.rounds, made.parts)):
        for part in parts:
            stage = part.name.split()[0]
            said[stage] = said.get(stage, 0.0) + count * part.seconds
    table = Table(f"{name}: by the clock, 2 ranks of one thread; {os.getloadavg()[0]:.1f} processes at work on {os.cpu_count()} cores")

    def add(what: str, said_s: float, took_s: float) -> None:
        table.add(f"{what}: said s, took s, ratio", f"{said_s:.1f}, {took_s:.1f}, {said_s / took_s:.2f}", "0.75 to 1.25")

    for stage, seconds in said.items():
        add(stage, seconds, sum(one.seconds for one in times.stages if one.stage == stage))
    others = sum(one.seconds for one in times.stages if one.stage not in said)
    table.add("stages that the plan leaves out, s", f"{others:.1f}")
    table.add("between stages, and starting, s", f"{took - sum(one.seconds for one in times.stages):.1f}")
    add("the whole", made.seconds, took)
    table.show()
