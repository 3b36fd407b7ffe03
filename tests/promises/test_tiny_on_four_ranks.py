"""The README's line on four ranks selects the rows that one rank selects (fp64, first round of the tiny world)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from nemo_sdg.store import StageStore

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = ("models.dtype=fp64", "run.rounds=1", "run.timeout_s=600")


def run(command: list[str], out: Path, *settings: str) -> list[dict]:
    """The decisions of the first round."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command, "run", "tiny", *SETTINGS, *settings, "--out", str(out)],
        cwd=out.parent, env=environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return list(StageStore.finished(out / "round-0" / "decisions").read())


def test_same_selected_rows_on_one_rank_and_on_four(tmp_path):
    one = run(["nemo_sdg"], tmp_path / "one")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "4", "-m", "nemo_sdg"]
    four = run(torchrun, tmp_path / "four", "topology.tp=2", "topology.pp=2")
    selected = [row["id"] for row in one if row["kept"]]
    print(
        f"\n{len(selected)} of {len(one)} rows selected on one rank; on four (TP2 x PP2) {sum(row['kept'] for row in four)}"
    )
    assert len(selected) > 100
    assert one == four
