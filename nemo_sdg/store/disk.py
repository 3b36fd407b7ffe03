"""The few operations by which a run changes a disk, in one place, so that tests can fail them and cut the power."""

from __future__ import annotations

import os
from pathlib import Path


class FileSystem:
    """Each method is the system call of its name."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags, 0o644)

    def write(self, file: int, data: bytes | memoryview) -> int:
        return os.write(file, data)

    def fsync(self, file: int) -> None:
        os.fsync(file)

    def close(self, file: int) -> None:
        os.close(file)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def mkdir(self, path: Path) -> None:
        os.mkdir(path)

    def unlink(self, path: Path) -> None:
        os.unlink(path)


fs = FileSystem()
"""What the store works with; always named as `disk.fs`, so that another can stand in its place."""
