"""torchrun itself: two agents on loopback, which stand for two nodes, with a rank each.

Four ranks of one launch are in tests/promises/test_tiny_on_four_ranks.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import free_port
from ranks import run_ranks
from small_run import make_inputs, row_files, small_config, write_recipe

import nemo_sdg.loop
from nemo_sdg.console import Console
from nemo_sdg.store import Run

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 420


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """(recipe, the row files of its first round on one rank in fp64)."""
    import nemo.collections.llm  # noqa: F401  (once, before the rank is forked)

    inputs = make_inputs(tmp_path_factory.mktemp("inputs"))
    config = small_config(inputs, rounds=1, timeout_s=LIMIT_S)
    config.models.dtype = "fp64"

    def whole(mesh):
        with Run.open(inputs / "one", config, writer=True) as opened:
            nemo_sdg.loop.run(config, opened, mesh, Console(speaks=False))

    run_ranks(whole)
    return write_recipe(inputs / "small.yaml", config), rows(inputs / "one")


def rows(run: Path) -> dict[str, bytes]:
    return {name: data for name, data in row_files(run).items() if "evaluation" not in name}


def torchrun(*options: str, recipe: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "nemo_sdg", "run", str(recipe)]
    command += ["topology.tp=2", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # A group of its own: torchrun's workers must go with it when a test fails.
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(jobs: list[subprocess.Popen], out: Path) -> list[str]:
    try:
        texts = [job.communicate(timeout=LIMIT_S)[0] for job in jobs]
    finally:
        for job in jobs:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
    logs = "".join(f"\n{p.name}:\n{p.read_text()[-2000:]}" for p in sorted(out.glob("logs/*.log")))
    assert [job.returncode for job in jobs] == [0] * len(jobs), "\n".join(texts) + logs
    return texts


def test_two_agents_complete_a_round_as_two_nodes_would(one_rank, tmp_path):
    recipe, expected = one_rank
    options = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "small"]
    options += ["--rdzv_endpoint", f"127.0.0.1:{free_port()}", "--local_addr", "127.0.0.1"]
    jobs = [torchrun(*options, recipe=recipe, out=tmp_path / "run") for _ in range(2)]
    texts = finish(jobs, tmp_path / "run")
    assert rows(tmp_path / "run") == expected and len(expected) > 12
    assert sum(text.count("small: finished") for text in texts) == 1, "only rank 0 speaks"
    assert not any("[NeMo" in text or "Traceback" in text for text in texts)
