"""Disks that fail at the k-th operation, and disks whose power is cut: stand in for `nemo_sdg.store.disk.fs`."""

from __future__ import annotations

import ast
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nemo_sdg.store
from nemo_sdg.store.disk import FileSystem

OPERATIONS = ("open", "write", "fsync", "replace", "mkdir", "unlink")
"""What changes a disk, or may be refused by it."""
Site = tuple[str, int]
"""File name and line of a call."""


class Lazy(FileSystem):
    """Never waits for the disk: for what must only end at the right bytes."""

    def fsync(self, file: int) -> None:
        """The page cache is enough."""


class Failing(Lazy):
    """Counts the operations and does `fail` in the place of the `at`-th; of a write, half still arrives."""

    def __init__(self, at: int, fail: Callable[[], None]) -> None:
        self.count, self.at, self.fail = 0, at, fail
        for name in OPERATIONS:
            setattr(self, name, self._counting(name, getattr(self, name)))

    def _counting(self, name: str, call: Callable) -> Callable:
        def counted(*args):
            self.count += 1
            if self.count == self.at:
                if name == "write":
                    call(args[0], bytes(args[1])[: len(args[1]) // 2])
                self.fail()
            return call(*args)

        return counted


@dataclass(eq=False)
class File:
    data: bytes = b""
    kept: bytes = b""
    """What was synced."""


@dataclass(eq=False)
class Folder:
    entries: dict[str, "File | Folder"] = field(default_factory=dict)
    kept: dict[str, "File | Folder"] = field(default_factory=dict)
    """The names that were synced."""
    waiting: list[tuple[tuple[str, "File | Folder | None"], ...]] = field(default_factory=list)
    """Changes that were not: each sets names (None takes one away), and comes whole or not at all."""


Choice = tuple[Callable[[], bool], Callable[[File], bytes]]
"""Whether a change that waits has arrived; what has arrived of a file."""


def _half(file: File) -> bytes:
    return file.data[: (len(file.data) + 1) // 2] if file.kept != file.data else file.data


def power_cuts(seed: int) -> dict[str, Choice]:
    """What a power cut may leave of what was not synced."""
    chance = random.Random(seed)
    return {
        "nothing": (lambda: False, lambda file: file.kept),
        "names alone": (lambda: True, lambda file: file.kept),
        "contents alone": (lambda: False, lambda file: file.data),
        "halves": (lambda: True, _half),
        "anything": (
            lambda: chance.random() < 0.5,
            lambda file: chance.choice([file.kept, file.data, _half(file)]),
        ),
    }


class Platter:
    """A disk in memory that knows what was synced and what was not."""

    def __init__(self) -> None:
        self.root = Folder()

    def at(self, path: str) -> File | Folder:
        node: File | Folder = self.root
        for part in Path(path).parts:
            node = node.entries[part]
        return node

    def apply(self, operation: tuple) -> None:
        name, path, *rest = operation
        parent, last = self.at(str(Path(path).parent)), Path(path).name
        if name == "create":
            self._change(parent, (last, File()))
        elif name == "mkdir":
            self._change(parent, (last, Folder()))
        elif name == "unlink":
            self._change(parent, (last, None))
        elif name == "write":
            self.at(path).data += rest[0]
        elif name == "truncate":
            self.at(path).data = b""
        elif name == "replace":
            node, target = parent.entries[last], Path(rest[0])
            other = self.at(str(target.parent))
            if other is parent:
                self._change(parent, (last, None), (target.name, node))
            else:
                self._change(other, (target.name, node))
                self._change(parent, (last, None))
        elif name == "fsync":
            node = self.at(path)
            if isinstance(node, File):
                node.kept = node.data
            else:
                node.kept, node.waiting = dict(node.entries), []

    @staticmethod
    def _change(folder: Folder, *changes: tuple[str, File | Folder | None]) -> None:
        _set(folder.entries, changes)
        folder.waiting.append(changes)

    def after_power_cut(self, choice: Choice) -> dict[str, bytes | None]:
        """What stands on the disk then: file contents by path, None for a folder."""
        arrives, content = choice

        def walk(folder: Folder, prefix: str) -> Iterator[tuple[str, bytes | None]]:
            names = dict(folder.kept)
            for changes in folder.waiting:
                if arrives():
                    _set(names, changes)
            for name, node in names.items():
                if isinstance(node, Folder):
                    yield f"{prefix}{name}", None
                    yield from walk(node, f"{prefix}{name}/")
                else:
                    yield f"{prefix}{name}", content(node)

        return dict(walk(self.root, ""))


def _set(names: dict, changes: tuple) -> None:
    for name, node in changes:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def put(tree: dict[str, bytes | None], root: Path) -> Path:
    """Lays what a power cut left into a real folder."""
    root.mkdir()
    for name, data in tree.items():
        (root / name).mkdir() if data is None else (root / name).write_bytes(data)
    return root


class Recorder(Lazy):
    """Works below `root` and writes down each operation; `left_out` is a call that is skipped, to see who notices."""

    def __init__(self, root: Path, left_out: Site | None = None) -> None:
        self.root, self.left_out = root, left_out
        self.log: list[tuple] = []
        self.sites: set[Site] = set()
        """The syncs and renames that were called."""
        self.left: dict[str, bytes] = {}
        """What stands there at the end."""
        self._paths: dict[int, str] = {}

    def open(self, path: Path, flags: int) -> int:
        name, new = self._name(path), not Path(path).exists()
        file = super().open(path, flags)
        self._paths[file] = name
        if new:
            self.log.append(("create", name))
        elif flags & os.O_TRUNC:
            self.log.append(("truncate", name))
        return file

    def write(self, file: int, data: bytes | memoryview) -> int:
        self.log.append(("write", self._paths[file], bytes(data)))
        return super().write(file, data)

    def fsync(self, file: int) -> None:
        if self._wanted():
            self.log.append(("fsync", self._paths[file]))

    def replace(self, source: Path, target: Path) -> None:
        if self._wanted():
            super().replace(source, target)
            self.log.append(("replace", self._name(source), self._name(target)))

    def mkdir(self, path: Path) -> None:
        super().mkdir(path)
        self.log.append(("mkdir", self._name(path)))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.log.append(("unlink", self._name(path)))

    def promise(self) -> None:
        """From here on, what can be seen now is there after any power cut."""
        self.log.append(("promise", "", visible(self.root)))

    def _name(self, path: Path) -> str:
        return Path(path).relative_to(self.root).as_posix()

    def _wanted(self) -> bool:
        frame = sys._getframe(2)
        while frame.f_code.co_name == "sync":
            frame = frame.f_back
        site = Path(frame.f_code.co_filename).name, frame.f_lineno
        self.sites.add(site)
        return site != self.left_out


_NEEDED = ("sync", "disk.fs.fsync", "disk.fs.replace")


def sync_sites() -> set[Site]:
    """Each call in the store that syncs or renames; `rows` is for files outside of runs."""
    found = set()
    for file in Path(nemo_sdg.store.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name != "sync" and file.name not in ("disk.py", "rows.py"):
                calls = (call for call in ast.walk(node) if isinstance(call, ast.Call))
                found |= {(file.name, call.lineno) for call in calls if ast.unparse(call.func) in _NEEDED}
    return found


def visible(root: Path) -> dict[str, bytes]:
    """The files that count: without the lock, the logs, and what has no name yet."""
    files = {file.relative_to(root): file for file in root.rglob("*") if file.is_file()}
    return {
        name.as_posix(): file.read_bytes()
        for name, file in sorted(files.items())
        if name.name != "run.lock" and "logs" not in name.parts and not any(part.startswith(".") for part in name.parts)
    }
