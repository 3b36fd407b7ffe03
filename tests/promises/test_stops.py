"""A run that is told to stop while rows are made, at every layout of its ranks: nothing is lost, nothing is there twice."""

from __future__ import annotations

import signal

import pytest
import stops
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
PHASES = ("generate", "score")


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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_those_of_the_run_that_nobody_disturbed(recipe, straight, tmp_path, layout):
    words, out = LAYOUTS[layout], tmp_path / "run"
    for phase in PHASES:
        before = stops.groups(out)
        done = stops.start(recipe, out, *words, phase=phase, number=signal.SIGUSR1)
        assert done.returncode == 75, (phase, done.returncode, done.stderr[-3000:])
        now = stops.groups(out)
        assert {name: now.get(name) for name in before} == before and len(now) > len(before)
    done = stops.start(recipe, out, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    same = {name: data for name, data in row_files(out).items() if "evaluation" not in name}
    assert same == {name: data for name, data in straight.items() if "evaluation" not in name}
    print(f"\nSTOPS, {layout}: {len(same)} files equal byte for byte after stops in {' and '.join(PHASES)}")
