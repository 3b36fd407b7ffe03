"""One process at a time does a piece of work, and the others wait: on one machine, or on all that share the disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nemo_sdg.console import Console
from nemo_sdg.errors import HubError

_POLL_S = 0.5
_held: set[int] = set()


def _let_go() -> None:
    """A fork must not keep the lock with its copy of the file when the process that took it is killed."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def one_at_a_time(path: Path, console: Console, what: str) -> Iterator[Callable[[str], None]]:
    """Holds the lock on a file while the block runs; waits as long as another process has it.

    flock: the kernel gives the lock back when its holder dies, however it dies, and NFS takes it to the server.
    The block is given a function that tells those who wait how far it is.

    Raises:
        HubError: the file cannot be made, or the file system has no locks.
    """
    lock = _open(path)
    try:
        if not _try(lock, path):
            with console.progress(f"waiting for another process that downloads {what}") as waiting:
                while not _try(lock, path):
                    waiting.note = os.pread(lock, 200, 0).decode(errors="replace").strip()
                    time.sleep(_POLL_S)
        if os.fstat(lock).st_nlink == 0:  # it was taken away with what it guarded, and may stand there anew
            _close(lock)
            lock = -1
            with one_at_a_time(path, console, what) as tell:
                yield tell
            return
        _write(lock, "")
        yield lambda text: _write(lock, text)
    finally:
        _close(lock)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        way_out = "set HF_HOME or choose another folder"
        raise HubError("cannot write", where=path, found=error.strerror, way_out=way_out) from error
    _held.add(lock)
    return lock


def _close(lock: int) -> None:
    if lock in _held:
        _held.discard(lock)
        os.close(lock)


def _try(lock: int, path: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise HubError(
            "the file system has no locks, so two processes might write the same file", where=path,
            found=error.strerror, way_out="set HF_HOME to, or choose a folder on, a file system with flock",
        ) from error  # fmt: skip


def _write(lock: int, text: str) -> None:
    """Who works, and how far it is. A full disk does not matter here."""
    with contextlib.suppress(OSError):
        line = f"{text}{', ' if text else ''}process {os.getpid()} on {os.uname().nodename}\n".encode()
        os.pwrite(lock, line, 0)
        os.ftruncate(lock, len(line))
