"""Bars 6 and 7: a rank killed or stopped in each phase of a run; torchrun starts a broken job again by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from phases import PHASES, TIMEOUT_S, check, hit
from processes import ROOT
from small_run import make_inputs, row_files, small_config, write_recipe

LIMIT_S = 900


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    from nemo_sdg.training import nemo  # noqa: F401  (once, before the ranks are forked)

    inputs = make_inputs(tmp_path_factory.mktemp("inputs"))
    return write_recipe(inputs / "small.yaml", small_config(inputs, rounds=1))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("phase", PHASES)
def test_it_is_named_with_what_it_did(recipe, tmp_path, phase, number):
    found = hit(recipe, tmp_path / "run", phase, number)
    check(found, tmp_path / "run", phase, number)
    limit = 15 if number == signal.SIGKILL else TIMEOUT_S + 15
    print(f"\nBAR 6, 7: {signal.Signals(number).name} during {phase}: ended after {found.seconds:.1f} s / {limit} s")


def workers(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_torchrun_starts_it_again_by_itself(recipe, tmp_path):
    """A worker is killed when the policy's first restart point is there; with one restart the run is finished."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "1"]
    command += ["-m", "nemo_sdg", "run", str(recipe), "topology.dp=2", "sft.steps=40", "--out", str(tmp_path / "run")]
    job = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + LIMIT_S
        work = tmp_path / "run/round-0/.policy.fit"
        while not list(work.glob("step-*")) and job.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(workers(job.pid)[1], signal.SIGKILL)
        text = job.communicate(timeout=LIMIT_S)[0]
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 0, text[-3000:]
    assert text.count("small: finished") == 1
    assert (tmp_path / "run/round-0/policy/training.json").is_file() and row_files(tmp_path / "run")
