"""Starts the ranks of one machine by forking this process, which has imported everything once already.

Under torchrun this is not used: torchrun has started the ranks. A rank dies with its launcher, and when one
rank fails the others are ended at once instead of waiting for its messages.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from typing import Any, Callable

from nemo_sdg.errors import Stopped
from nemo_sdg.parallel import watch

_PR_SET_PDEATHSIG = 1
STOPS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they take a machine away; Slurm's --signal sends the second."""
_PASSED_ON = (*STOPS, signal.SIGINT)
"""Signals that the launcher hands to its ranks."""
GRACE_S = 2.0
"""Seconds that the other ranks get to end by themselves after one has failed."""


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, however that ends (Linux only)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def set_threads(ranks: int, threads: int | None = None) -> None:
    """Share the cores of this machine among its ranks; call it before the first parallel region of torch."""
    import torch

    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // ranks))


def claim_report() -> bool:
    """Whether this rank may print the error that ends the job: the first one to ask may, the others stay silent."""
    if "MASTER_PORT" not in os.environ:
        return True
    try:
        # Its own connection: the rank may fail before it has joined the process group, or because of it.
        return claim_report_in(watch.connect())
    except Exception:  # who keeps the store is gone: said once on each node, for nobody else hears of it
        return os.environ.get("LOCAL_RANK", "0") == "0"


def claim_report_in(store: Any) -> bool:
    """The same, by the store of the job: for the launcher, which keeps it."""
    return store.add(f"nemo_sdg/error/{watch.attempt()}", 1) == 1


Ended = Callable[[int, int, bool, Any], None]
"""Told of the first rank that a signal has ended: (rank, signal, whether the launcher was sent it too, the store)."""


def launch(fn: Callable[[], int], nprocs: int, on_signal: Ended | None = None) -> tuple[int, int | None]:
    """Run `fn` on `nprocs` ranks of this machine and wait for them.

    Each rank sees the variables that torchrun would set. `fn` returns its exit status.

    Args:
        on_signal: called when the first failure is a rank that a signal has ended.
    Returns:
        The exit status of the job, and the rank that failed first (None if none did). The status is that of `Stopped`
        where the ranks were ended by the signal that told the launcher to stop.
    """
    if nprocs == 1:
        return fn(), None
    store_read, store_write = os.pipe()
    parent = os.getpid()
    pids = [_fork(fn, rank, nprocs, parent, store_read, store_write) for rank in range(nprocs)]
    os.close(store_read)
    # Made after the forks, so that no rank inherits its sockets; the port is the kernel's choice.
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(store_write, store.port.to_bytes(4, "little") * nprocs)
    os.close(store_write)
    try:
        return _wait(pids, None if on_signal is None else lambda *what: on_signal(*what, store))
    finally:
        del store


def _fork(fn: Callable[[], int], rank: int, nprocs: int, parent: int, store_read: int, store_write: int) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        die_with_parent()
        os.close(store_write)
        port = int.from_bytes(os.read(store_read, 4), "little")
        if os.getppid() != parent or not port:
            os._exit(1)
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(nprocs), LOCAL_WORLD_SIZE=str(nprocs),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True",
        )  # fmt: skip
        status = fn()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)  # no clean-up of the parent's objects in a fork
    raise AssertionError("unreachable")


def _wait(pids: list[int], on_signal: Callable[[int, int, bool], None] | None) -> tuple[int, int | None]:
    """Wait for all ranks; after the first failure the others get GRACE_S, then SIGKILL."""
    running = {pid: rank for rank, pid in enumerate(pids)}
    failed: tuple[int, int] | None = None
    deadline = None
    told: set[int] = set()

    def pass_on(number: int, frame: object) -> None:
        told.add(number)
        _end(running, number)

    previous = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        while running:
            pid, code = os.waitpid(-1, os.WNOHANG if deadline else 0)
            if pid == 0:
                if time.monotonic() > deadline:
                    _end(running, signal.SIGKILL)
                    deadline = float("inf")
                time.sleep(0.02)
                continue
            rank = running.pop(pid, None)
            status = os.waitstatus_to_exitcode(code)
            if rank is not None and status and failed is None:
                failed = (rank, status)
                if status < 0 and on_signal is not None:
                    on_signal(rank, -status, -status in told)
                deadline = time.monotonic() + GRACE_S
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if failed is None:
        return 0, None
    rank, status = failed
    if -status in told and -status in STOPS:
        return Stopped.exit_status, rank
    return (status if status > 0 else 128 - status), rank


def _end(running: dict[int, int], number: int) -> None:
    for pid in list(running):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
