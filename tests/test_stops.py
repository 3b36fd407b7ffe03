"""SIGTERM and SIGUSR1 in every phase: what is finished is committed, all ranks end with 75, and the same command goes on."""

from __future__ import annotations

import json
import signal

import pytest
import stops
from small_run import row_files, write_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(recipe, the rows of the run that nobody disturbs)."""
    from nemo_sdg.training import nemo  # noqa: F401  (once, before the ranks are forked)

    inputs, config = stops.world(tmp_path_factory.mktemp("inputs"))
    recipe = write_recipe(inputs / "small.yaml", config)
    done = stops.start(recipe, inputs / "straight", "topology.dp=2")
    assert done.returncode == 0, done.stderr
    return recipe, row_files(inputs / "straight")


def test_one_run_is_stopped_in_every_phase_and_is_the_run_that_nobody_disturbed(run, tmp_path):
    recipe, straight = run
    out, note = tmp_path / "run", tmp_path / "run/logs/stopped.json"
    for turn, phase in enumerate(stops.PHASES):
        before, number = stops.groups(out), (signal.SIGTERM, signal.SIGUSR1)[turn % 2]
        done = stops.start(recipe, out, "topology.dp=2", phase=phase, number=number)
        said = [line for line in done.stderr.splitlines() if "nemo-sdg: " in line]
        assert done.returncode == 75 and len(said) == 1, (phase, done.returncode, done.stderr[-3000:])
        assert "the same command goes on from there" in said[0] and "told to stop" in said[0]
        assert phase in said[0] and (phase == "train" or signal.Signals(number).name in said[0]), said
        assert json.loads(note.read_text())["why"] in said[0]
        now = stops.groups(out)
        assert {name: now.get(name) for name in before} == before, "a group that was committed was made again"
        assert phase not in ("prompts", "generate", "score", "select") or len(now) > len(before), phase
    done = stops.start(recipe, out, "topology.dp=2")
    assert done.returncode == 0 and not note.exists(), done.stderr[-3000:]
    assert row_files(out) == straight
    names = stops.ids(out, "responses")
    assert len(names) == len(set(names)) == 36
