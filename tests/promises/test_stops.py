"""A run that is told to stop while rows are made, at every layout of its ranks: nothing is lost, nothing is there twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stops
from processes import ROOT
from small_run import row_files, write_recipe

LAYOUTS = {
    "one rank": ["topology.dp=1"],
    "tp2": ["topology.tp=2"],
    "pp2": ["topology.pp=2"],
    "tp2 dp2": ["topology.tp=2", "topology.dp=2"],
    "together": ["topology.dp=2", "models.placement=together"],
    "together, cut differently": ["topology.dp=2", "models.placement=together", "score.topology.tp=2", "score.topology.dp=1"],
    "split": ["models.placement=split", "topology.dp=2", "generate.topology.dp=1", "score.topology.dp=1"],
}
PHASES = (("loading",), ("generate", "score"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    inputs, config = stops.world(tmp_path_factory.mktemp("inputs"))
    config.sft.enabled = config.reward.enabled = False
    config.models.dtype = "fp64"
    config.run.timeout_s = 30
    return write_recipe(inputs / "small.yaml", config)


@pytest.fixture(scope="module")
def straight(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "run"
    done = stops.start(recipe, out, "topology.dp=2")
    assert done.returncode == 0, done.stderr
    return row_files(out)


@pytest.mark.parametrize("phases", PHASES, ids=" and ".join)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_those_of_the_run_that_nobody_disturbed(recipe, straight, tmp_path, layout, phases):
    words, out = LAYOUTS[layout], tmp_path / "run"
    for phase in phases:
        before = stops.groups(out)
        done = stops.start(recipe, out, *words, phase=phase, number=signal.SIGUSR1)
        assert done.returncode == 75, (phase, done.returncode, done.stderr[-3000:])
        now = stops.groups(out)
        assert {name: now.get(name) for name in before} == before and len(now) > len(before)
    done = stops.start(recipe, out, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    same = {name: data for name, data in row_files(out).items() if "evaluation" not in name}
    assert same == {name: data for name, data in straight.items() if "evaluation" not in name}
    print(f"\nSTOPS, {layout}: {len(same)} files equal byte for byte after stops in {' and '.join(phases)}")


def test_torchrun_does_not_start_again_what_was_told_to_stop(recipe, straight, tmp_path):
    """It has a restart left, and takes the status 75 for a failure."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "1"]
    command += ["-m", "nemo_sdg", "run", str(recipe), "topology.dp=2", "generate.slots=1", "--out", str(out)]
    job = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        while not list(out.glob("round-0/responses/part-*")) and job.poll() is None:
            time.sleep(0.01)
        worker = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()[1]
        os.kill(int(worker), signal.SIGUSR1)
        text = job.communicate(timeout=900)[0]
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 1 and text.count("told to stop (SIGUSR1)") == 1, text[-3000:]
    assert "torchrun starts what has stopped once more" in text and "small: finished" not in text
    assert (out / "logs/stopped.json").exists()
    done = stops.start(recipe, out, "topology.dp=2")
    assert done.returncode == 0 and not (out / "logs/stopped.json").exists()
    assert row_files(out) == straight
