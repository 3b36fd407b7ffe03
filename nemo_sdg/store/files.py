"""A file or folder appears whole under its name or not at all, also when the power fails in between.

Written under a temporary name beside the final one, synced, renamed, and the folder synced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Iterable

from nemo_sdg.errors import StoreError


def commit_file(path: Path, data: bytes) -> None:
    """Puts `data` at `path`, replacing what is there in one step. Raises StoreError when the disk refuses."""
    temporary = path.with_name(f".{path.name}.tmp-{os.uname().nodename}-{os.getpid()}")
    try:
        make_folder(path.parent)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise refused(path, error) from error


def commit_rows(path: Path, rows: Iterable[dict]) -> None:
    """Puts rows at `path` as JSONL, in one step."""
    commit_file(path, b"".join(map(dump, rows)))


def commit_folder(temporary: Path, final: Path) -> None:
    """Renames a finished folder to its final name, after syncing every file in it.

    Raises StoreError when `final` exists already or the disk refuses.
    """
    if final.exists():
        raise StoreError("the folder is there already", where=final, way_out="delete it to make it again")
    try:
        for folder, _, files in os.walk(temporary, topdown=False):
            for name in files:
                sync(Path(folder, name))
            sync(Path(folder))
        make_folder(final.parent)
        os.rename(temporary, final)
        sync(final.parent)
    except OSError as error:
        raise refused(final, error) from error


def make_folder(path: Path) -> None:
    """The folder and those above it, each one durable in its parent."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        os.mkdir(path)
    except FileExistsError:  # another rank was faster
        pass
    sync(path.parent)


def digest(path: Path) -> str | None:
    """16 hex digits for the content of a file; for a folder, for the names and sizes in it; None when absent."""
    whole = hashlib.sha256()
    if path.is_dir():
        listing = sorted((str(f.relative_to(path)), f.stat().st_size) for f in path.rglob("*") if f.is_file())
        whole.update(json.dumps(listing).encode())
    elif path.is_file():
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                whole.update(block)
    else:
        return None
    return whole.hexdigest()[:16]


def dump(row: Any) -> bytes:
    """One row as a line. NaN is refused here, last of all places, so that no file can hold it."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def sync(path: Path) -> None:
    """What a file or a folder holds is on the disk when this returns."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def refused(path: Path, error: OSError) -> StoreError:
    """What the disk did not let us do, as the user's error."""
    return StoreError(
        "cannot write",
        where=path,
        found=error.strerror or str(error),
        way_out="nothing half-written is left under this name; make room or choose another folder and run again",
    )
