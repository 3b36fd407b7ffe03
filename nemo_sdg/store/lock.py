"""One writer at a time: a lock on a file, which the kernel gives back when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path

from nemo_sdg.errors import StoreError
from nemo_sdg.store import disk

PATIENCE_S = 0.5
"""Seconds that the lock may still be held: the kernel takes a moment to end all threads of a holder that was killed."""
_held: set[int] = set()


def _let_go() -> None:
    """A forked helper that outlives a killed writer must not keep the lock with its copy of the file."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


def take(path: Path, what: str, way_out: str) -> int:
    """The open file that holds the lock.

    Args:
        what: what is in use when another process holds it, for example "the run".
    Raises:
        StoreError: another process holds it, or the file system has no locks.
    """
    lock = disk.fs.open(path, os.O_RDWR | os.O_CREAT)
    try:
        _lock(lock)
    except OSError as error:
        holder = os.read(lock, 200).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise StoreError(f"{what} is in use", where=path.parent, found=holder, way_out=way_out) from None
        raise StoreError(
            "the file system has no locks",
            where=path,
            found=error.strerror,
            way_out="choose a folder on a file system with flock",
        ) from None
    _held.add(lock)
    with contextlib.suppress(OSError):  # a note for people, on a disk that may be full
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    return lock


def _lock(lock: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def release(lock: int) -> None:
    """Lets the next process have it."""
    os.close(lock)
    _held.discard(lock)
