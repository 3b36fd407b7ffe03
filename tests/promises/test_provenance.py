"""Bar 14: what must not change a row does not, each setting by itself; a second process is refused at once."""

from __future__ import annotations

import time
from pathlib import Path

import kills
import pytest
from fields import changed, leaves
from processes import forked
from small_run import row_files

from nemo_sdg import cli
from nemo_sdg.config import Topology, identity, load, to_yaml
from nemo_sdg.store import Run

# Of a server, of training, of what one rank has not, or how far a run goes; other tests hold these.
ELSEWHERE = (
    "endpoint.", "restart_every", "keep_last", "virtual_stages", "run.rounds", "run.strict", "sequence_parallel", "stage_layers",
    "evaluate.ablation",
)  # fmt: skip
RANKS = {
    "topology.tp": {"tp": 2}, "topology.pp": {"pp": 2}, "topology.dp": {"dp": 2},
    "generate.topology.tp": {"dp": 2}, "generate.topology.pp": {"dp": 2}, "generate.topology.dp": {"dp": 2},
    "score.topology.tp": {"dp": 2}, "score.topology.pp": {"dp": 2}, "score.topology.dp": {"dp": 2},
}  # fmt: skip
"""The topology of the job for a change of one; a phase's own TP or PP is then 2, its replicas 1 beside the other's."""
SAME: list[str] = []

VALUES = {"run.threads": 2, "generate.kv_cache_bytes": 64 << 20}
"""With 64 threads the machine would only stall; of 64 bytes no prompt finds room, and each is set aside."""


def by_the_way() -> list[str]:
    config = kills.settings()
    keys = [key for key, _ in leaves() if identity(changed(config, key)) == identity(config)]
    return [key for key in keys if not any(part in key for part in ELSEWHERE)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return kills.finish(kills.settings("models.dtype=fp64"), tmp_path_factory.mktemp("whole") / "run", Topology(dp=1))


@pytest.mark.parametrize("key", by_the_way())
def test_no_row_changes(key, whole, tmp_path):
    config = kills.settings("models.dtype=fp64")
    if key in RANKS:
        topology = Topology(**{"dp": 1, **RANKS[key]})
        phase, *_, name = key.split(".")
        if name == "dp" and phase != "topology":
            config.models.placement, config.generate.topology.dp, config.score.topology.dp = "split", 1, 1
        elif phase != "topology":
            setattr(getattr(config, phase).topology, name, 2)
    else:
        config, topology = changed(config, key), Topology(dp=1)
        if key in VALUES:
            group, name = key.split(".")
            setattr(getattr(config, group), name, VALUES[key])
    assert kills.finish(config, tmp_path / "run", topology) == whole
    SAME.append(key)


def test_how_many():
    fields, kept = [key for key, _ in leaves()], by_the_way()
    refused = sum(identity(changed(kills.settings(), key)) != identity(kills.settings()) for key in fields)
    print(f"\nBAR 14: {refused} of {len(fields)} fields decide rows: {refused}/{refused} refused by name (`make test`)")
    count = len(kept)
    print(f"BAR 14: {len(SAME)}/{count} of the others, changed one by one, change no byte / {count}/{count}")
    assert SAME == kept and len(kept) >= 14


def test_a_second_process_is_refused_within_a_second(tmp_path: Path):
    config = load("tiny", [])
    (tmp_path / "recipe.yaml").write_text(to_yaml(config))
    with Run.open(tmp_path / "run", config, writer=True):
        cli.main(["plan", "tiny"])  # what a warm process has imported
        began = time.monotonic()
        second = forked(lambda: cli.main(["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]))
        seconds = time.monotonic() - began
    assert second.returncode == 2 and "the run is in use" in second.stderr
    print(f"\nBAR 14: a second process is refused after {seconds:.2f} s / 1")
    assert seconds < 1
    assert row_files(tmp_path / "run") == {}
