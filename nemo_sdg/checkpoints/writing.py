"""What the writers of all formats have in common: a checkpoint is made of units, each written in one go."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Optional


@dataclass(frozen=True)
class Unit:
    """A part of a checkpoint: one file, or a few. Units know nothing of each other and may run side by side."""

    files: tuple[str, ...]
    """Names below the folder, with `/`; the first one names the unit."""
    num_bytes: int
    """Bytes that it writes, headers apart: for the progress and the free space."""
    write: Callable[[Path], Optional[Mapping[str, str]]]
    """Writes the files below the folder that it is given, with a few hundred MB of memory at most; their parent
    folders are there. May return the SHA-256 of files by name (`Output`), which are then not read again for it."""


STOP = threading.Event()
"""Set when a conversion ends early: threads in the middle of a large file give up at their next block."""


class Stopped(Exception):
    """The file is not wanted any more."""


class Output:
    """A file that is written from front to back, and its SHA-256 taken on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        if STOP.is_set():
            raise Stopped
        self._hash.update(data)
        self._file.write(data)

    @property
    def sha256(self) -> str:
        """Of what has been written so far, in hex."""
        return self._hash.hexdigest()


@contextmanager
def create(path: Path) -> Iterator[Output]:
    """A new file for a unit's `write`."""
    with open(path, "xb") as file:
        yield Output(file)
