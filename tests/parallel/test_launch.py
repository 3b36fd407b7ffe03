"""Local ranks end together: with the first that fails, and with their launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_sdg.parallel import launch

ROOT = Path(__file__).resolve().parents[2]


def run_forked(fn, nprocs):
    """`launch` in a child, for it waits for all children of its process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, repr(launch.launch(fn, nprocs)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    return eval(os.read(read, 100))  # noqa: S307  (our own repr)


def rank() -> int:
    return int(os.environ["RANK"])


def test_all_good():
    assert run_forked(lambda: 0 if os.environ["WORLD_SIZE"] == "3" else 1, 3) == (0, None)


@pytest.mark.parametrize("status", [1, 2])
def test_the_first_failure_ends_the_others(status):
    started = time.monotonic()
    assert run_forked(lambda: status if rank() == 1 else time.sleep(60) or 0, 3) == (status, 1)
    assert time.monotonic() - started < 15


def test_a_killed_rank():
    assert run_forked(lambda: os.kill(os.getpid(), signal.SIGKILL) if rank() == 0 else time.sleep(60) or 0, 2) == (
        137,
        0,
    )


def test_an_exception_is_a_failure():
    def fails():
        if rank() == 1:
            raise RuntimeError("broken")
        return 0

    assert run_forked(fails, 2) == (1, 1)


def test_ranks_die_with_their_launcher(tmp_path):
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom nemo_sdg.parallel.launch import launch\n"
        "def wait():\n    Path(sys.argv[1], os.environ['RANK']).write_text(str(os.getpid()))\n    time.sleep(120)\n    return 0\n"
        "launch(wait, 2)\n"
    )
    job = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.2)
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    job.kill()
    job.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
