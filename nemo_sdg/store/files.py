"""A file or folder appears whole under its name or not at all, also when the power fails in between.

Written under a temporary name beside the final one, synced, renamed, and the folder synced.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nemo_sdg.errors import StoreError
from nemo_sdg.store import disk

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_BUFFER = 1 << 18
"""Bytes that wait for one write."""


def commit_file(path: Path, data: bytes) -> None:
    """Puts `data` at `path`, replacing what is there in one step. Raises StoreError when the disk refuses."""
    temporary = path.with_name(f".{path.name}.tmp-{os.uname().nodename}-{os.getpid()}")
    with refusing(path):
        try:
            make_folder(path.parent)
            _write(temporary, data, os.O_TRUNC, synced=True)
            disk.fs.replace(temporary, path)
            sync(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                disk.fs.unlink(temporary)
            raise


def commit_rows(path: Path, rows: Iterable[dict]) -> None:
    """Puts rows at `path` as JSONL, in one step."""
    commit_file(path, b"".join(map(dump, rows)))


def commit_folder(temporary: Path, final: Path) -> None:
    """Renames a finished folder to its final name, after syncing every file in it.

    Raises StoreError when `final` exists already or the disk refuses.
    """
    if final.exists():
        raise StoreError("the folder is there already", where=final, way_out="delete it to make it again")
    with refusing(final):
        for folder, _, files in os.walk(temporary, topdown=False):
            for name in files:
                sync(Path(folder, name))
            sync(Path(folder))
        make_folder(final.parent)
        disk.fs.replace(temporary, final)
        sync(final.parent)


def write_file(path: Path, data: bytes) -> None:
    """A file of a folder that `commit_folder` will sync and name; until then it may be torn."""
    with refusing(path):
        _write(path, data, os.O_TRUNC)


def open_new(path: Path) -> BinaryIO:
    """A file that is written bit by bit, of a folder that `commit_folder` will sync and name."""
    return io.BufferedWriter(_Raw(path), _BUFFER)


class _Raw(io.RawIOBase):
    def __init__(self, path: Path) -> None:
        self._file: int | None = disk.fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview) -> int:
        assert self._file is not None
        return disk.fs.write(self._file, data)

    def close(self) -> None:
        super().close()
        if self._file is not None:
            file, self._file = self._file, None
            disk.fs.close(file)


def append(path: Path, data: bytes) -> None:
    """Adds a note at the end of a file. It is not synced and may be torn: for what nothing reads back."""
    with refusing(path):
        make_folder(path.parent)
        _write(path, data, os.O_APPEND)


def make_folder(path: Path) -> None:
    """The folder and those above it, each one durable in its parent."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        disk.fs.mkdir(path)
    except FileExistsError:  # another rank was faster
        pass
    sync(path.parent)


def digest(path: Path) -> str | None:
    """16 hex digits for the content of a file; for a folder, for the names and sizes in it; None when absent."""
    if path.is_dir():
        listing = sorted((str(f.relative_to(path)), f.stat().st_size) for f in path.rglob("*") if f.is_file())
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]
    return sha256_of(path)[:16] if path.is_file() else None


def sha256_of(path: Path) -> str:
    """SHA-256 in hex of the content of a file."""
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            whole.update(block)
    return whole.hexdigest()


def dump(row: Any) -> bytes:
    """One row as a line. NaN is refused here, last of all places, so that no file can hold it."""
    return _ENCODER.encode(row).encode() + b"\n"


def sync(path: Path) -> None:
    """What a file or a folder holds is on the disk when this returns."""
    file = disk.fs.open(path, os.O_RDONLY)
    try:
        disk.fs.fsync(file)
    finally:
        disk.fs.close(file)


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """What the disk refuses in this block is said of `path`, as a StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            "cannot write",
            where=path,
            found=error.strerror or str(error),
            way_out="nothing half-written is left under this name; make room or choose another folder and run again",
        ) from error


def _write(path: Path, data: bytes, flag: int, *, synced: bool = False) -> None:
    file = disk.fs.open(path, os.O_WRONLY | os.O_CREAT | flag)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[disk.fs.write(file, rest) :]
        if synced:
            disk.fs.fsync(file)
    finally:
        disk.fs.close(file)
