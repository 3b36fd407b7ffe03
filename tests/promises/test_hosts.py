"""The cable between two hosts is pulled in the middle of a run: both end in time, and the same command goes on."""

from __future__ import annotations

import time

import hosts
import pytest
import stops
from small_run import make_inputs, row_files, small_config, write_recipe

WHY_NOT = hosts.reason()
TIMEOUT_S = 15
LIMIT_S = 900


@pytest.mark.skipif(WHY_NOT is not None, reason=f"two hosts: {WHY_NOT}")
@pytest.mark.parametrize("phase", ["responses/part-*", ".policy.fit/step-*"])
@pytest.mark.parametrize("topology", ["topology.tp=2", "topology.dp=2"])
def test_both_sides_end_with_one_error_each_and_the_run_goes_on(tmp_path, topology, phase):
    inputs = make_inputs(tmp_path)
    config = small_config(inputs, rounds=1, timeout_s=TIMEOUT_S)
    config.models.dtype = "fp64"
    config.generate.samples, config.generate.max_tokens, config.generate.slots = 16, 48, 2
    config.sft.steps, config.sft.restart_every = 40, 2
    recipe, out = write_recipe(inputs / "small.yaml", config), tmp_path / "run"
    words = ["run", str(recipe), topology, "--out", str(out)]
    with hosts.TwoHosts() as two:
        jobs = two.torchrun(*words)
        until = time.monotonic() + LIMIT_S
        while not list(out.glob(f"round-0/{phase}")) and time.monotonic() < until:
            assert jobs[0].poll() is None, jobs[0].communicate()
            time.sleep(0.01)
        two.plugged(False)
        pulled = time.monotonic()
        texts = [job.communicate(timeout=LIMIT_S)[1] for job in jobs]
        took = time.monotonic() - pulled
        assert all(job.returncode for job in jobs) and not two.left()
        for text in texts:
            assert text.count("nemo-sdg: ") == 1, text
        assert "rank 1 was killed or stands still during" in texts[0]
        assert "rank 1 cannot reach node1" in texts[1]
        print(f"\nHOSTS, {topology}, {phase}: both ended {took:.0f} s after the cable was pulled / {TIMEOUT_S} s of timeout")
        assert took < 3 * TIMEOUT_S + 15
        two.plugged(True)
        jobs = two.torchrun(*words)
        texts = [job.communicate(timeout=LIMIT_S) for job in jobs]
        assert [job.returncode for job in jobs] == [0, 0], texts
    done = stops.start(recipe, tmp_path / "straight", topology)
    assert done.returncode == 0, done.stderr
    assert row_files(out) == row_files(tmp_path / "straight")
