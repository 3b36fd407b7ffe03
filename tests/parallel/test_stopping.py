"""When a process is told to stop: by a signal, by the clock, twice; and where its job began."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
from pathlib import Path

import megatron.core  # noqa: F401  (once, before the forks)
import psutil
import pytest
import torch
from folders import make_folder, make_tokenizer, small_shape
from processes import forked
from ranks import run_ranks

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import Topology, load
from nemo_sdg.config.stopping import seconds
from nemo_sdg.errors import ConfigError, Stopped
from nemo_sdg.parallel import stopping
from nemo_sdg.parallel.rendezvous import job_store
from nemo_sdg.session import Session


@pytest.mark.parametrize("text, expected", [
    ("90s", 90), ("20m", 1200), ("3h50m", 13800), ("1d2h", 93600), ("1d2h3m4s", 93784),
    ("", 0), ("90", 0), ("3h 50m", 0), ("50m3h", 0), ("0s", 0), ("-1s", 0), ("3.5h", 0),
])  # fmt: skip
def test_a_time_in_seconds(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["90", "soon", "0s"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ConfigError, match="run.stop_after: the value is not allowed.*expected a time such as 90s, 20m"):
        load("tiny", [f"run.stop_after='{text}'"])


def test_the_job_began_when_slurm_says_so_or_when_who_started_the_ranks_did(monkeypatch):
    for name in ("SLURM_JOB_START_TIME", "RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert stopping.started_at() == psutil.Process().create_time()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_PORT", "1")
    launcher = psutil.Process().create_time()
    assert forked(lambda: int(stopping.started_at() != launcher)).returncode == 0
    assert forked(lambda: int(psutil.Process().create_time() > launcher)).returncode == 1
    monkeypatch.setenv("SLURM_JOB_START_TIME", "1700000000")
    assert stopping.started_at() == 1_700_000_000


def test_the_clock(monkeypatch):
    monkeypatch.setattr(stopping, "started_at", lambda: time.time() - 10)
    with stopping.listening(("1h", 3600)):
        stopping.heed()
    with stopping.listening(("9s", 9)), pytest.raises(Stopped, match=r"told to stop \(run.stop_after=9s has passed\)"):
        stopping.heed()
    stopping.heed()  # nobody listens any more


def test_a_signal_is_remembered_until_it_is_heeded_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGUSR1)
    with stopping.listening():
        assert stopping.wanted() is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stopping.wanted() == "SIGUSR1"
        with stopping.listening(), pytest.raises(Stopped, match="the same command goes on from there"):
            stopping.heed()
    assert signal.getsignal(signal.SIGUSR1) is before and stopping.wanted() is None


def twice(pause: float) -> int:
    """A process whose main thread waits in C, and which is told twice."""

    def tell() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(pause)

    with stopping.listening(on_second=lambda: print("at once", flush=True)):
        threading.Thread(target=tell).start()
        time.sleep(0.1)
        import select

        select.epoll().poll(2 * pause + 0.5)
    return 0


def test_a_second_signal_ends_the_process_at_once():
    done = forked(lambda: twice(stopping.AGAIN_S + 0.3))
    assert (done.returncode, done.stdout) == (75, "at once\n")


def test_what_a_launcher_passes_on_is_not_a_second_one():
    done = forked(lambda: twice(0.1))
    assert (done.returncode, done.stdout) == (0, "")


def told(mesh):
    """The last rank alone is told; what each rank then does in units of its own, and in meeting the others."""
    with stopping.listening():
        mesh.barrier()
        if mesh.rank == mesh.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        done = 0
        try:
            for done in range(5 if mesh.dp_rank < mesh.dp - 1 else 200):  # replicas have different shares
                stopping.heed(mesh)
                time.sleep(0.02)
            mesh.meet()
        except Stopped as stop:
            return done, str(stop)


@pytest.mark.parametrize("shape", [{"tp": 2}, {"pp": 2}, {"dp": 2}, {"tp": 2, "dp": 2}], ids=str)
def test_one_rank_is_told_and_all_stop_those_of_a_replica_at_the_same_unit(shape):
    found = run_ranks(told, **shape)
    assert len({sentence for _, sentence in found}) == 1 and "SIGTERM" in found[0][1]
    tp, pp = shape.get("tp", 1), shape.get("pp", 1)
    for first in range(0, len(found), tp * pp):
        assert len({units for units, _ in found[first : first + tp * pp]}) == 1
    assert all(units < 199 for units, _ in found)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("base")
    return make_folder(root / "base", small_shape(), make_tokenizer(root / "t.model"))


def loading(mesh, folder, everyone, agreed=False):
    """The last rank is told while it reads, when the others have read all, or when they have `agreed` on it as well: (bytes
    it has read, what became of it)."""
    from nemo_sdg.checkpoints import reading
    from nemo_sdg.checkpoints.load import fill
    from nemo_sdg.engine.load import build_chunks

    opened, found, others = ModelFolder.open(folder), reading.Reading(), mesh.world_size - 1
    read = reading._read_block

    def one(*args):
        read(*args)
        while others and job_store().add("ready", 0) < others:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    if mesh.rank == others:
        reading._read_block = one
    chunks = build_chunks(opened.shape, mesh, dtype=torch.float32)
    with stopping.listening():
        try:
            fill(chunks, opened, mesh, threads=1, reading=found, give_up=stopping.known)
            if mesh.rank < others and not agreed:
                job_store().add("ready", 1)
            stopping.heed_any(mesh, everyone=everyone)
            if mesh.rank < others and agreed:
                job_store().add("ready", 1)
        except Stopped as stop:
            return found.num_bytes, str(stop)
    return found.num_bytes, "filled"


@pytest.mark.parametrize("shape, everyone", [
    ({}, False), ({"tp": 2}, False), ({"pp": 2}, False), ({"dp": 2}, True), ({"tp": 2, "dp": 2}, True),
], ids=str)  # fmt: skip
def test_who_is_told_while_it_loads_reads_no_further_and_all_end(base, shape, everyone):
    *others, last = run_ranks(loading, base, everyone, **shape)
    assert 0 < last[0] < 50_000 and all(number > 100_000 for number, _ in others)
    assert {"SIGTERM" in said for _, said in (*others, last)} == {True}


def test_a_replica_that_loads_by_itself_is_not_ended_by_another(base):
    first, last = run_ranks(loading, base, False, True, dp=2, timeout_s=10)
    assert first[1] == "filled" and "SIGTERM" in last[1]


def meeting(mesh, may_stop):
    with stopping.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            mesh.meet(may_stop=may_stop)
        except Stopped:
            return "stopped"
    return "met"


def test_where_a_run_may_not_stop_it_meets():
    assert run_ranks(meeting, False, dp=2) == ["met", "met"]
    assert len(set(run_ranks(meeting, True, dp=2))) == 1


def test_before_anything_has_begun(tmp_path, monkeypatch):
    def importing(name):
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(importlib, "import_module", importing)
    session = Session(topology=Topology(), log_dir=Path(tmp_path), resumable=True)
    done = forked(lambda: session.start(lambda mesh, console: 0))
    assert done.returncode == 75
    assert done.stderr == "nemo-sdg: told to stop (SIGUSR1) before anything had begun; the same command begins\n"
