"""A round across two hosts with a cable between them, whose homes are no use; `make promises` also pulls the cable."""

from __future__ import annotations

import hosts
import pytest
import stops
from small_run import make_inputs, row_files, small_config, write_recipe

WHY_NOT = hosts.reason()
LIMIT_S = 400


@pytest.mark.skipif(WHY_NOT is not None, reason=f"two hosts: {WHY_NOT}")
def test_two_hosts_complete_a_round_though_their_names_are_loopback_addresses_and_their_homes_no_folders(tmp_path):
    """Each host's own name means 127.0.1.1, as Debian has it; one has no HOME, the other one that cannot be made."""
    inputs = make_inputs(tmp_path)
    config = small_config(inputs, rounds=1)
    config.sft.enabled = config.reward.enabled = False
    recipe, out = write_recipe(inputs / "small.yaml", config), tmp_path / "run"
    done = stops.start(recipe, tmp_path / "straight", "topology.dp=1")
    assert done.returncode == 0, done.stderr
    with hosts.TwoHosts() as two:
        jobs = two.torchrun("run", str(recipe), "topology.dp=2", "--out", str(out), homes=(None, "/proc/nowhere"))
        texts = [job.communicate(timeout=LIMIT_S) for job in jobs]
        assert [job.returncode for job in jobs] == [0, 0], texts
        assert not two.left()
    assert "small: finished" in texts[0][0] and not texts[1][0].strip(), "only rank 0 speaks"
    assert row_files(out) == row_files(tmp_path / "straight")
