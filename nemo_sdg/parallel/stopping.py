"""A run that is told to stop ends between two units of work, on all ranks, with what is finished committed.

One place is asked everywhere: `heed`, between two units. A unit is a row of a model, a row group of the writer, a
training step, a stage. The loading of a model is none: it is broken off, and `heed_any` behind it ends all whom it was
for. Who is told by a signal, or by the clock, tells the others through the store of the job. Ranks that share a model
leave together, for one alone would be waited for in the next collective; replicas leave each at its own unit, and a
replica that waits for another (`Mesh.meet`) leaves from there. At the end all ranks wait for each other.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil

from nemo_sdg.errors import Stopped
from nemo_sdg.parallel import watch
from nemo_sdg.parallel.launch import STOPS

if TYPE_CHECKING:
    from nemo_sdg.parallel.mesh import Mesh

AGAIN_S = 1.0
"""A signal that comes later than this after the first ends the process at once. Earlier it is the same one: a launcher
passes on what a scheduler has sent to all processes of the job."""
HEED_EVERY = 8
"""Rows of a model between two questions whether to stop: the question takes a message to the ranks of the replica."""
LOOK_S = 0.5
"""Seconds between two looks at what other ranks were told."""
_TOLD = "nemo_sdg/stop"
_ENDED = "nemo_sdg/stopped"
_listener: "_Listener | None" = None


def started_at() -> float:
    """When this job began, in seconds since 1970: Slurm's start of the job where it tells it, else the start of the
    process that has started the ranks (torchrun, or our own launcher), else that of this one."""
    told = os.environ.get("SLURM_JOB_START_TIME", "")
    if re.fullmatch(r"[0-9]+", told):
        return float(told)
    ranks_of_another = "RANK" in os.environ and "MASTER_PORT" in os.environ
    own = psutil.Process()
    with contextlib.suppress(psutil.Error):
        parent = own.parent() if ranks_of_another else None
        return (parent or own).create_time()
    return own.create_time()


@contextlib.contextmanager
def listening(
    stop_after: tuple[str, float] | None = None, *, on_second: Callable[[], None] | None = None, late: bool = False
) -> Iterator[None]:
    """Remembers, within the block, that this process was told to stop; a block within another adds nothing.

    Args:
        stop_after: how it was written, and seconds since the start of the job.
        on_second: called before a second signal ends the process.
        late: a signal that nobody heeded acts at the end of the block as it would have without it.
    """
    global _listener
    if _listener is not None:
        yield
        return
    _listener = listener = _Listener(stop_after, on_second)
    try:
        yield
    finally:
        listener.close()
        _listener = None
    if late and listener.number is not None:
        os.kill(os.getpid(), listener.number)


def listen_again() -> None:
    """Takes the signals back from whoever has put a handler of its own before ours, as Lightning does when a fit begins:
    its own ends a rank by itself, with nothing saved, where the signal comes late in a step."""
    if _listener is not None:
        _listener.listen()


def wanted() -> str | None:
    """Why this run is to stop, as far as this rank knows; None while it is not."""
    return None if _listener is None else _listener.why()


def heed(mesh: Mesh | None = None) -> None:
    """Ends the run here if it was told to stop.

    Args:
        mesh: all ranks of a replica call it at the same unit, and end together; None where one rank works and the others
            learn what it raises (`parallel.agree`).
    Raises:
        Stopped: on all these ranks.
    """
    if _listener is None:
        return
    reason = known()
    _end(reason if mesh is None else mesh.broadcast_in_replica(reason))


def heed_all(mesh: Mesh) -> None:
    """The same for all ranks of a grid."""
    if _listener is not None:
        _end(mesh.broadcast_object(known()))


def heed_any(mesh: Mesh, *, everyone: bool = False) -> None:
    """Behind work that a rank breaks off when it hears of a stop: one that has heard of it ends all, as its part is missing.

    Args:
        everyone: all ranks of the grid come here; else those of this replica.
    """
    if _listener is not None:
        told = (mesh.gather_objects if everyone else mesh.gather_in_replica)(known())
        _end(next((reason for reason in told if reason is not None), None))


def known() -> str | None:
    """Why this run is to stop, as far as any rank has told; tells the others what this one knows."""
    listener = _listener
    return None if listener is None else listener.known()


def stopped(reason: str) -> Stopped:
    """The error that ends all ranks."""
    return Stopped(
        f"the run was told to stop ({reason})", where=watch.phase() or None,
        way_out="what is finished is kept, and the same command goes on from there",
    )  # fmt: skip


@contextlib.contextmanager
def together(mesh: Mesh, note: Callable[[str], None]) -> Iterator[None]:
    """Within the block a run that is told to stop ends on all ranks before it ends on one.

    Args:
        note: called on the writer with the sentence, once nobody works any more. torchrun turns the status 75 of its
            ranks into 1, so a script must look at what this leaves.
    Raises:
        Stopped: also where torchrun starts the ranks again after they have stopped; it counts their status as a failure.
    """
    try:
        heed_restart(mesh)
        yield
    except Stopped as stop:
        if mesh.world_size > 1:
            with contextlib.suppress(watch.LostPeer):
                mesh.arrive("nemo_sdg/all stopped")
        if mesh.writer:
            note(str(stop))
        if mesh.world_size > 1:  # nobody ends before the note is there: torchrun would then end the writer
            with contextlib.suppress(watch.LostPeer):
                mesh.arrive("nemo_sdg/noted")
        with contextlib.suppress(Exception):  # the store may be gone, and then nobody starts anything again
            if "MASTER_PORT" in os.environ:
                watch.connect().set(_ENDED, str(stop))
        raise


def heed_restart(mesh: Mesh) -> None:
    """Ends the ranks at once that torchrun has started again though their run was told to stop."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    reason = None
    if mesh.writer:
        store = watch.connect()
        reason = "torchrun starts what has stopped once more" if store.check([_ENDED]) else None
    _end(mesh.broadcast_object(reason))


def _end(reason: str | None) -> None:
    if reason is not None:
        raise stopped(reason)


class _Listener:
    """The signals and the clock of one process."""

    def __init__(self, stop_after: tuple[str, float] | None, on_second: Callable[[], None] | None) -> None:
        self.number: int | None = None
        self._reason: str | None = None
        self._told, self._looked, self._on_second = False, 0.0, on_second
        self._text, seconds = stop_after or ("", None)
        self._until = None if seconds is None else started_at() + seconds
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in STOPS}
            read, self._pipe = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._pipe, False)
            # Python's handlers wait for the main thread, which may be in a collective for long; this does not.
            self._wakeup = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
            threading.Thread(target=self._count, args=(read,), name="stopping", daemon=True).start()
        self.listen()

    def listen(self) -> None:
        for number in self._before:
            signal.signal(number, self._note)

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._pipe)

    def why(self) -> str | None:
        if self._reason is None and self._until is not None and time.time() > self._until:
            self._reason = f"run.stop_after={self._text} has passed"
        return self._reason

    def known(self) -> str | None:
        import torch.distributed as dist

        from nemo_sdg.parallel.rendezvous import job_store

        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self.why()
        store = job_store()
        if self.why() is not None and not self._told:
            store.set(_TOLD, self._reason)
            self._told = True
        elif self._reason is None and time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            if store.check([_TOLD]):
                self._reason = store.get(_TOLD).decode()
        return self._reason

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._reason is None:
            self.number, self._reason = number, signal.Signals(number).name

    def _count(self, read: int) -> None:
        first: float | None = None
        while told := os.read(read, 1):
            if told[0] not in STOPS:
                continue
            if first is None:
                first = time.monotonic()
                self._note(told[0], None)
            elif time.monotonic() - first > AGAIN_S:
                if self._on_second is not None:
                    self._on_second()
                os._exit(Stopped.exit_status)
        os.close(read)
