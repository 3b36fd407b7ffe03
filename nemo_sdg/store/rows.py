"""A file of rows that is too long for memory: written row by row, and there only when it is whole."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

from nemo_sdg.errors import StoreError
from nemo_sdg.store.files import dump, sync


class RowFile:
    """A `with` block around the rows of `path`. Without `commit` they are gone at its end, and `path` is as it was."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self._temporary = path.with_name(f".{path.name}.tmp-{os.uname().nodename}-{os.getpid()}")
        self._file: Any = None

    def __enter__(self) -> RowFile:
        try:
            self._file = open(self._temporary, "wb")
        except OSError as error:
            raise self._refused(error) from error
        return self

    def write(self, row: dict) -> None:
        """The next row. Raises StoreError when the disk refuses."""
        try:
            self._file.write(dump(row))
        except OSError as error:
            raise self._refused(error) from error
        self.count += 1

    def commit(self) -> None:
        """Puts the rows at `path`, replacing what is there in one step. Raises StoreError when the disk refuses."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            os.replace(self._temporary, self.path)
            sync(self.path.parent)
        except OSError as error:
            raise self._refused(error) from error

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError:  # what was not committed need not reach the disk
            pass
        self._temporary.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> StoreError:
        return StoreError(
            "cannot write", where=self.path, found=error.strerror or str(error),
            way_out="what stood under this name is as it was; make room or choose another folder and run again",
        )  # fmt: skip
