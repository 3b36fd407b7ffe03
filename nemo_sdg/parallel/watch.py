"""What each rank is doing, told to the others twice a second, so that one which dies or stands still can be named.

A rank that has lost a peer knows only that somebody's message did not come: gloo and NCCL name a socket at best. Each
rank therefore has a thread that counts, with the phase of its work beside the number, in the store that all ranks of
the job share; who has stopped counting and has not said that it ended is the one that was killed or stopped.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

INTERVAL_S = 0.5
SILENT_S = 2.0
"""A rank that has not counted for so long is gone: the thread needs no more than a moment of a core each time."""
PATIENCE_S = 5.0
"""Seconds that the store may take to answer."""

_phases: list[str] = []
_watch: "_Watch | None" = None


@contextlib.contextmanager
def doing(phase: str) -> Iterator[None]:
    """Say what this rank does within the block; blocks within it add to that.

    After an error it still stands, for the report of the error.
    """
    depth = len(_phases)
    _phases.append(phase)
    if _watch is not None:
        _watch.tell()  # here, not by the thread, which may come too late for a rank that dies at once
    yield
    del _phases[depth:]


def phase() -> str:
    """What this rank does, for example "train of round 0, saving"; empty before anything was said."""
    return ", ".join(_phases)


@contextlib.contextmanager
def watching(rank: int, world: int, timeout_s: float, cut_off: Callable[[], object]) -> Iterator[None]:
    """Count, within the block, so that the others see that this rank lives; nothing where it is alone.

    Args:
        timeout_s: how long collectives wait for a peer.
        cut_off: called, from another thread, when the store has not answered for longer than these would have told it; the
            process ends behind it. Whoever asks a store behind a broken network waits for as long as TCP hopes.
    """
    global _watch
    if world == 1 or "MASTER_PORT" not in os.environ:
        yield
        return
    _watch = _Watch(rank, world)
    _watch.guard(timeout_s + 2 * (SILENT_S + PATIENCE_S) + 0.02 * world, cut_off)  # later than `silent` would have said it
    try:
        yield
    finally:
        _watch.end()
        _watch = None


def silent() -> list[tuple[int, str]]:
    """The ranks that have stopped counting, each with what it did last; takes SILENT_S and a little more.

    Raises:
        Unreachable: the store of the job does not answer: its node is gone, or the network to it.
    """
    return [] if _watch is None else _watch.silent()


def end_launcher() -> None:
    """End torchrun on this node, whose store does not answer: it would wait for it, deaf to its ranks, until TCP gives up
    (tcp(7): tcp_retries2, 13 to 30 minutes)."""
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process().parent() if "TORCHELASTIC_RUN_ID" in os.environ else None
        if parent is None or not any(Path(word).name == "torchrun" or word in _LAUNCHERS for word in parent.cmdline()):
            return
        for other in parent.children():  # its other ranks, which nobody would end
            if other.pid != os.getpid():
                other.terminate()
        parent.kill()


_LAUNCHERS = ("torch.distributed.run", "torch.distributed.launch")
"""Modules that are torchrun."""


class Unreachable(RuntimeError):
    """The store of the job does not answer."""


class LostPeer(RuntimeError):
    """Another rank did not come."""


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says no more than that a message of another rank, or the rank itself, did not come."""
    import torch.distributed as dist

    return isinstance(error, (LostPeer, dist.DistError)) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def connect() -> Any:
    """A connection of its own to the store of the job, which the process group may wait on for long."""
    import torch.distributed as dist

    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = datetime.timedelta(seconds=PATIENCE_S)
    return dist.TCPStore(*place, is_master=False, wait_for_workers=False, timeout=timeout)


def last_told(store: Any, rank: int) -> str:
    """What a rank said last that it does; empty if it has said nothing."""
    key = _key(rank)
    if not store.check([key]):
        return ""
    return json.loads(store.get(key))[1]


def attempt() -> str:
    """torchrun keeps its store over restarts."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _key(rank: int) -> str:
    return f"nemo_sdg/doing/{attempt()}/{rank}"


class _Watch:
    """The counting of one rank."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world, self.count = rank, world, 0
        self.store = connect()
        self.lock, self.over = threading.Lock(), threading.Event()
        self.answered = 0
        self.tell()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def tell(self) -> None:
        if not self.lock.acquire(timeout=PATIENCE_S):
            return  # the store does not answer; work may go on until it needs it
        with contextlib.suppress(Exception):  # the store may be gone; others notice
            if not self.over.is_set():
                self.count += 1
                self.store.set(_key(self.rank), json.dumps([self.count, phase()]))
        self.lock.release()

    def guard(self, limit_s: float, cut_off: Callable[[], object]) -> None:
        """Ends this process, behind `cut_off`, when the store has not answered for so long."""
        threading.Thread(target=self._guard, args=(limit_s, cut_off), name="guard", daemon=True).start()

    def _guard(self, limit_s: float, cut_off: Callable[[], object]) -> None:
        waited, before = 0.0, -1
        while not self.over.wait(INTERVAL_S):
            # By the count of its own waits: a process that was stopped for long has not asked meanwhile.
            waited = waited + INTERVAL_S if self.answered == before else 0.0
            before = self.answered
            if waited > limit_s:
                # By a thread: what is said may go through the network that is broken, to a terminal or a shared log.
                saying = threading.Thread(target=cut_off, name="cut off", daemon=True)
                saying.start()
                saying.join(3 * PATIENCE_S)
                end_launcher()
                os._exit(1)

    def end(self) -> None:
        if not self.lock.acquire(timeout=PATIENCE_S):
            self.over.set()  # the store does not answer
            return
        with contextlib.suppress(Exception):
            self.over.set()  # behind the lock, so that nothing is told after it
            self.store.set(_key(self.rank), json.dumps([-1, phase()]))
        self.lock.release()

    def silent(self) -> list[tuple[int, str]]:
        found: list[list[tuple[int, str]]] = []
        # A store behind a broken network keeps a caller for as long as TCP hopes.
        asking = threading.Thread(target=lambda: found.append(self._silent()), name="asking", daemon=True)
        asking.start()
        asking.join(SILENT_S + PATIENCE_S + 0.02 * self.world)  # each of many ranks takes the store a moment
        if not found:
            raise Unreachable
        return found[0]

    def _silent(self) -> list[tuple[int, str]]:
        before = self._all()
        time.sleep(SILENT_S)
        now = self._all()
        # A rank that ended by itself says -1: its own error is told, or will be.
        return [(rank, now[rank][1]) for rank in now if now[rank] == before.get(rank) and now[rank][0] >= 0]

    def _all(self) -> dict[int, list]:
        with self.lock, contextlib.suppress(Exception):
            others = [rank for rank in range(self.world) if rank != self.rank and self.store.check([_key(rank)])]
            return {rank: json.loads(self.store.get(_key(rank))) for rank in others}
        return {}

    def _run(self) -> None:
        while not self.over.wait(INTERVAL_S):
            self.tell()
            with self.lock:
                if not self.over.is_set():
                    self._ask()

    def _ask(self) -> None:
        """Whether the store answers: what it is told it does not acknowledge."""
        try:
            self.answered += self.store.check([_key(self.rank)])
        except Exception:  # this connection is broken; others to the same store may not be
            with contextlib.suppress(Exception):
                self.store = connect()
