"""examples/04_launch_with_nemo_run.py: what NeMo-Run would start, as it says itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from processes import ROOT

EXAMPLE = ROOT / "examples/04_launch_with_nemo_run.py"
WANTED = {
    "local": ["'torchrun'", "'--nproc-per-node'", "'-m'", "'nemo_sdg'", "'run'", "'tiny'", "'run.rounds=1'", "'--out'"],
    "docker": ["container_image: nemo-sdg:latest", "num_gpus: 2", "ntasks_per_node: 2", "- /shared:/shared"],
    "slurm": [
        "#SBATCH --nodes=4", "#SBATCH --ntasks-per-node=1", "sbatch --requeue", "--container-image nemo-sdg:latest",
        "--nnodes 4 --nproc-per-node 2", "-m nemo_sdg run tiny run.stop_after=3h50m run.rounds=1 --out where",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", WANTED)
def test_what_would_be_started(kind, tmp_path):
    environment = {**os.environ, "NEMORUN_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "2000"}
    words = [sys.executable, EXAMPLE, kind, "tiny", "where", "run.rounds=1", "--nodes", "4", "--ranks", "2", "--dryrun"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for text in WANTED[kind]:
        assert text in done.stdout, (text, done.stdout[-6000:])
    assert "--signal" not in done.stdout, "torchrun would die of it"
