"""A rank that is killed or stopped is named, with what it did, by whoever finds it out first; once, and in time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import forked

from nemo_sdg.config import Topology
from nemo_sdg.parallel import watch
from nemo_sdg.parallel.watch import doing
from nemo_sdg.session import Session

TIMEOUT_S = 6


def job(tmp_path: Path, then, ranks: int = 3):
    """A session whose ranks do `then(mesh)` and meet; how it ended, its ranks, and how long it took from `then` on."""
    import megatron.core  # noqa: F401  (once, before the forks)

    def work(mesh, console):
        (tmp_path / f"pid-{mesh.rank}").write_text(str(os.getpid()))
        with doing("counting sheep"), doing("in the dark"):
            mesh.barrier()
            (tmp_path / f"began-{mesh.rank}").touch()
            then(mesh)
            mesh.barrier()
        return 0

    settings = dict(topology=Topology(tp=ranks), timeout_s=TIMEOUT_S, threads=1)
    done = forked(lambda: Session(log_dir=tmp_path / "logs", **settings).start(work))
    took = time.time() - min(path.stat().st_mtime for path in tmp_path.glob("began-*"))
    pids = [int(path.read_text()) for path in tmp_path.glob("pid-*")]
    assert len(pids) == ranks and not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    return done, took


def hit(number: int):
    return lambda mesh: mesh.rank == 1 and os.kill(os.getpid(), number)


def test_a_killed_rank_is_named_with_its_phase(tmp_path):
    done, took = job(tmp_path, hit(signal.SIGKILL))
    assert done.returncode == 1 and took < 15
    said = [line for line in done.stderr.splitlines() if line.startswith("nemo-sdg: ")]
    assert len(said) == 1
    assert "rank 1 was ended by signal 9 during counting sheep, in the dark" in said[0]


def test_a_stopped_rank_is_named_with_its_phase(tmp_path):
    done, took = job(tmp_path, hit(signal.SIGSTOP))
    assert done.returncode == 1 and took < TIMEOUT_S + 15
    said = [line for line in done.stderr.splitlines() if line.startswith("nemo-sdg: ")]
    assert len(said) == 1 and done.stderr.count("nemo-sdg") == 1
    assert said[0].startswith("nemo-sdg: rank 1 was killed or stands still during counting sheep, in the dark; rank ")


def test_an_error_of_one_rank_is_told_with_its_phase_and_nobody_else_is_blamed(tmp_path):
    def then(mesh):
        if mesh.rank == 2:
            raise ZeroDivisionError

    done, _ = job(tmp_path, then)
    said = [line for line in done.stderr.splitlines() if line.startswith("nemo-sdg: ")]
    assert len(said) == 1 and "rank 2 failed with ZeroDivisionError during counting sheep, in the dark" in said[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_ranks_that_are_told_to_stop_through_their_launcher(tmp_path, number):
    """What does not heed the signal is ended by it; the status says that the run can be continued all the same."""

    def then(mesh):
        if mesh.rank == 0:
            os.kill(os.getppid(), number)
        time.sleep(30)

    done, took = job(tmp_path, then)
    assert done.returncode == 75 and took < 15
    said = done.stderr.splitlines()
    assert said == ["nemo-sdg: stopped during counting sheep, in the dark; the same command goes on from what is there"]


def test_a_rank_that_asks_a_store_which_does_not_answer_ends_in_time(tmp_path, monkeypatch):
    """The launcher, which keeps the store, is stopped while a rank waits for another one that has not come."""
    monkeypatch.setattr(watch, "PATIENCE_S", 2.0)
    monkeypatch.setattr(watch, "SILENT_S", 1.0)
    resumed_s = 1.5 * (TIMEOUT_S + 2 * (watch.PATIENCE_S + watch.SILENT_S))

    def then(mesh):
        if mesh.rank == 1:
            os.system(f"(sleep {resumed_s}; kill -CONT {os.getppid()}) >/dev/null 2>&1 &")  # so that the launcher ends as well
            os.kill(os.getppid(), signal.SIGSTOP)
            time.sleep(60)
        (tmp_path / f"asks-{mesh.rank}").touch()
        began = time.monotonic()
        try:
            mesh.meet()
        finally:
            (tmp_path / f"asks-{mesh.rank}").write_text(f"{time.monotonic() - began}")

    done, took = job(tmp_path, then, ranks=2)
    assert done.returncode == 1 and (tmp_path / "asks-0").read_text() == "", "who asked has never had an answer"
    said = [line for line in done.stderr.splitlines() if line.startswith("nemo-sdg: ")]
    assert len(said) == 1 and "rank 0 cannot reach 127.0.0.1" in said[0] and "counting sheep, in the dark" in said[0]
    assert "Unreachable" in (tmp_path / "logs/rank-00000.log").read_text()


def test_a_watch_whose_own_connection_broke_makes_another(monkeypatch):
    """Others to the same store still answer; a job that works must not be ended for it."""

    def broken(keys):
        raise ConnectionError("reset")

    one = object.__new__(watch._Watch)
    one.rank, one.answered, one.store = 0, 0, SimpleNamespace(check=broken)
    monkeypatch.setattr(watch, "connect", lambda: SimpleNamespace(check=lambda keys: True))
    one._ask()
    assert one.answered == 0
    one._ask()
    assert one.answered == 1


@pytest.mark.parametrize("local_rank, expected", [("0", ["says", "ends"]), ("1", ["waits", "ends"])])
def test_who_speaks_for_a_node_is_not_ended_by_its_neighbour(tmp_path, monkeypatch, local_rank, expected):
    done = []
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setattr(watch, "end_launcher", lambda: done.append("ends"))
    monkeypatch.setattr(time, "sleep", lambda seconds: done.append("waits"))
    console = SimpleNamespace(fail=lambda text: done.append("says"))
    Session(topology=Topology(), log_dir=tmp_path)._cut_off(console, watch.Unreachable())
    assert done == expected
