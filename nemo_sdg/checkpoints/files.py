"""The files of a checkpoint: a folder. Nothing is opened that lies outside. No torch.

Names are relative, with `/`. A link is followed only inside the folder, or into the `blobs/` of the Hugging
Face cache that the folder is a snapshot of (huggingface_hub: `models--OWNER--NAME/snapshots/COMMIT`).
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from nemo_sdg.errors import CheckpointError

_AGAIN = "download the folder again"


@dataclass(frozen=True)
class Member:
    """The bytes of one file of a checkpoint: `size` bytes of `file` from `offset` on."""

    name: str
    file: Path
    offset: int
    size: int

    def read(self, at_most: int) -> bytes:
        """The whole content; raises CheckpointError if it is longer than `at_most` bytes or cut short."""
        if self.size > at_most:
            raise CheckpointError(
                "the file is too large for what it should be", where=self.file, found=f"{self.size} bytes",
                expected=f"at most {at_most} bytes", way_out=_AGAIN,
            )  # fmt: skip
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) != self.size:
            raise CheckpointError(
                "the file is cut short", where=self.file, found=f"{len(content)} bytes", expected=f"{self.size} bytes",
                way_out=_AGAIN,
            )  # fmt: skip
        return content


class Files:
    """The files below one folder."""

    def __init__(self, root: Path) -> None:
        self.where = root
        real = Path(os.path.realpath(root))
        self._allowed = [os.path.join(real, "")]
        self._real_folders: dict[tuple[str, int, int], str] = {}
        for folder in (real, *real.parents):  # it may be a folder inside a repository
            if folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name):
                self._allowed.append(f"{folder.parents[1] / 'blobs'}{os.sep}")

    def path(self, name: str) -> Path:
        """Where a member is or would be; nothing is looked up."""
        return self.where / name

    def find(self, name: str) -> Member | None:
        """A regular file by its name, or None. Raises CheckpointError for a link that leads out, or a device."""
        path = self.path(name)
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return None
        if stat.S_ISDIR(found.st_mode):
            return None
        self._check(path, found.st_mode)
        return Member(name, path, 0, found.st_size)

    def block(self, name: str, size: int) -> tuple[Path, int, int | None]:
        """Where a file of `size` bytes lies that metadata tell of: file, offset, and the size the file must have.

        Nothing is looked up in a folder: a rank asks for a few files of thousands.
        """
        return self.path(name), 0, size

    def holding(self, file: Path, offset: int) -> Member:
        """The member that the byte at `offset` of a file belongs to. Raises CheckpointError if there is none."""
        name = str(file.relative_to(self.where))
        member = self.find(name)
        if member is None:
            raise CheckpointError("a file of the weights is missing", where=file, found="no file", way_out=_AGAIN)
        return member

    def size(self, file: Path) -> int | None:
        """Bytes of a file of this checkpoint; None if it is not there. Raises CheckpointError as `find` does."""
        try:
            found = os.stat(file)
        except OSError:
            return None
        self._check(file, found.st_mode)
        return found.st_size

    def entries(self, folder: str = "") -> dict[str, bool]:
        """Names directly below a folder, sorted, and whether each is a folder; empty where there is none.

        Raises CheckpointError for a link that leads out.
        """
        path = self.path(folder)
        self._check_inside(path)
        try:
            with os.scandir(path) as found:
                return {entry.name: _is_folder(entry) for entry in sorted(found, key=lambda entry: entry.name)}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def names(self) -> list[str]:
        """Every file below the folder; folders that are links are left out."""
        found = []
        for folder, _, files in os.walk(self.where):
            found += [str(Path(folder, file).relative_to(self.where)) for file in files]
        return sorted(found)

    def open(self, file: Path) -> int:
        """A descriptor for reading a file of this checkpoint. Raises CheckpointError, and OSError as `os.open`."""
        self._check(file, os.stat(file).st_mode)  # before: to open a device can do something already
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._check(file, os.fstat(descriptor).st_mode)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _check(self, path: Path, mode: int) -> None:
        if not stat.S_ISREG(mode):
            raise CheckpointError("not a regular file", where=path, way_out=_AGAIN)
        self._check_inside(path)

    def _check_inside(self, path: Path) -> None:
        real = self._real(path)
        if not os.path.join(real, "").startswith(tuple(self._allowed)):
            raise CheckpointError(
                "a link leads out of the checkpoint", where=path, found=real, expected=f"a path below {self.where}",
                way_out="copy what it leads to into the folder",
            )  # fmt: skip

    def _real(self, path: Path) -> str:
        """Where a path leads; of a folder it is asked once, for one holds the thousands of pieces of a tensor."""
        folder, name = os.path.split(path)
        try:
            found = os.stat(folder or os.curdir)
        except OSError:
            return os.path.realpath(path)
        known = folder, found.st_dev, found.st_ino  # another folder of the same name is asked again
        if known not in self._real_folders:
            self._real_folders[known] = os.path.realpath(folder)
        real = os.path.join(self._real_folders[known], name)
        return os.path.realpath(path) if name == os.pardir or os.path.islink(real) else real


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
