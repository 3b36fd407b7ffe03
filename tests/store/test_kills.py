"""SIGKILL in the middle of real ranks: nothing is lost, doubled or left running; `make promises` does it 60 times."""

from __future__ import annotations

import random

import kills

from nemo_sdg.config import Topology

ONE, TWO = Topology(dp=1), Topology(dp=2)


def test_killed_three_times_at_changing_numbers_of_replicas(tmp_path):
    config, chance = kills.settings(), random.Random(4)
    whole = kills.finish(config, tmp_path / "whole", ONE)
    out, previous = tmp_path / "killed", None
    for victim, topology in (("one rank", TWO), ("all ranks", ONE), ("the launcher", TWO)):
        killed = kills.kill(config, out, topology, victim, chance)
        if previous is not None:
            assert not kills.redone(out, previous)
        previous = killed
    assert kills.finish(config, out, ONE) == whole and len(whole) > 25
    assert not kills.redone(out, previous) and kills.missing_and_double(out) == (0, 0)
    assert not list(out.rglob("*.tmp*"))
