"""Ranks with one voice: what each kind of failure shows, where its traceback goes, and the exit status."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import megatron.core  # noqa: F401  (once, before the forks)
import pytest
from processes import ROOT, Done, forked

from nemo_sdg.config import Topology
from nemo_sdg.console import Console
from nemo_sdg.errors import CheckpointError
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.session import Session


def session(tmp_path: Path, then: Callable[[Mesh], object], ranks: int) -> Done:
    """A session on so many ranks, each of which prints, speaks, and then does `then(mesh)`."""

    def work(mesh: Mesh, console: Console) -> int:
        print(f"noise of rank {mesh.rank}")
        console.say("we are working")
        mesh.barrier()
        then(mesh)
        return 0

    settings = dict(topology=Topology(tp=ranks), timeout_s=20, threads=1, loading="loading Megatron")
    return forked(lambda: Session(log_dir=tmp_path / "logs", **settings).start(work))


def fail(error: Exception) -> None:
    raise error


def log(tmp_path: Path, rank: int) -> str:
    return (tmp_path / "logs" / f"rank-{rank:05d}.log").read_text()


def test_two_ranks_that_work(tmp_path):
    done = session(tmp_path, lambda mesh: mesh.tp == 2 or fail(AssertionError()), 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "loading Megatron ..."
    assert done.stdout.count("we are working") == 1 and "noise" not in done.stdout
    assert "noise of rank 0" in log(tmp_path, 0) and "noise of rank 1" in log(tmp_path, 1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_collections_pass_by_what_the_imports_have_made(tmp_path, ranks):
    gc.unfreeze()
    everything = len(gc.get_objects())
    done = session(tmp_path, lambda mesh: print(f"left: {len(gc.get_objects())}"), ranks)
    assert done.returncode == 0
    left = int(log(tmp_path, 0).split("left: ")[1].split()[0])
    assert everything > 100_000 and left < everything / 10


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_mistake_that_every_rank_meets_is_said_once(tmp_path, ranks):
    mistake = CheckpointError("a tensor is missing", where="here", way_out="look")
    done = session(tmp_path, lambda mesh: fail(mistake), ranks)
    assert (done.returncode, done.stderr) == (2, "nemo-sdg: here: a tensor is missing; look\n")


def test_a_mistake_that_only_another_rank_meets_is_said_too(tmp_path):
    done = session(
        tmp_path, lambda mesh: mesh.rank and fail(CheckpointError("a chunk is missing")) or mesh.barrier(), 2
    )
    assert (done.returncode, done.stderr) == (2, "nemo-sdg: a chunk is missing\n")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_defect_shows_the_end_of_the_log_of_the_rank_that_failed(tmp_path, ranks):
    done = session(tmp_path, lambda mesh: mesh.rank == ranks - 1 and 1 / 0 or mesh.barrier(), ranks)
    assert done.returncode == 1
    *lines, last = done.stderr.splitlines()
    assert last.startswith(f"nemo-sdg: rank {ranks - 1} failed with ZeroDivisionError")
    assert last.endswith(f"rank-{ranks - 1:05d}.log")
    assert 0 < len(lines) <= 20 and all(line.startswith("  | ") for line in lines)
    assert "ZeroDivisionError: division by zero" in log(tmp_path, ranks - 1)


def test_a_killed_rank_is_reported_by_the_launcher(tmp_path):
    done = session(tmp_path, lambda mesh: mesh.rank and os.kill(os.getpid(), signal.SIGKILL) or mesh.barrier(), 2)
    assert done.returncode == 1
    assert "rank 1 was ended by signal 9" in done.stderr.splitlines()[-1]


SCRIPT = """
import sys
from pathlib import Path
from nemo_sdg.config import Topology
from nemo_sdg.errors import CheckpointError
from nemo_sdg.session import Session

def work(mesh, console):
    console.say("we are working")
    raise CheckpointError("a tensor is missing")

if __name__ == "__main__":
    sys.exit(Session(topology=Topology(tp=2), log_dir=Path(sys.argv[1]), timeout_s=20).start(work))
"""


def test_under_torchrun_the_first_rank_that_fails_speaks(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", tmp_path / "script.py", tmp_path / "logs"],
        capture_output=True, text=True, timeout=100, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("nemo-sdg: a tensor is missing\n") == 1
    assert done.stdout.count("we are working") == 1
