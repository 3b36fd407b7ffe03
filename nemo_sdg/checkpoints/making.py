"""The working folder of a checkpoint that is being made: `.NAME.converting` beside its final place.

It holds the unfinished checkpoint, a ledger of the files that are whole, and a lock. A file is written under
another name, synced and renamed before the ledger lists it, so what the ledger lists can be trusted after a
kill or a power failure, and a rerun makes the others only.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_sdg.checkpoints.writing import Unit
from nemo_sdg.errors import StoreError
from nemo_sdg.store import commit_file, commit_folder
from nemo_sdg.store.files import make_folder, sha256_of, sync
from nemo_sdg.store.lock import release, take

SUMS = "SHA256SUMS"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Making:
    """One checkpoint on its way to `target`. Use it in a `with` block.

    Args:
        identity: what the result depends on; a working folder of another identity is begun afresh.
    Raises:
        StoreError: the target exists, another process makes it, or the disk refuses.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any]) -> None:
        self.target = target
        self.afresh: str | None = None
        """Why an earlier attempt could not be continued."""
        self.done: dict[str, tuple[int, str]] = {}
        """Size and SHA-256 of each file that is whole."""
        self._work = target.with_name(f".{target.name}.converting")
        self._folder = self._work / "checkpoint"
        self._parts = self._work / "parts"
        self._ledger = self._work / "progress.jsonl"
        self._names = itertools.count()
        self._adding = threading.Lock()
        self._refuse_existing()
        try:
            self._refuse_what_is_not_ours()
            make_folder(self._work)
            self._lock = take(self._work / "lock", f"what makes {target}", "wait for it or stop it")
        except OSError as error:
            raise self._refused(self._work, error) from error
        try:
            self._refuse_existing()  # it may have appeared while we came to the lock
            self._take_up(identity)
        except BaseException:
            release(self._lock)
            raise

    def __enter__(self) -> "Making":
        return self

    def __exit__(self, *_: object) -> None:
        release(self._lock)

    def has(self, unit: Unit) -> bool:
        return all(name in self.done for name in unit.files)

    def write(self, unit: Unit) -> None:
        """Makes the files of a unit; several threads may. Raises StoreError when the disk refuses."""
        part = self._parts / str(next(self._names))
        try:
            for name in unit.files:
                (part / name).parent.mkdir(parents=True, exist_ok=True)
            sums = dict(unit.write(part) or {})
            entries = []
            for name in unit.files:
                file = part / name
                entries.append({"name": name, "size": file.stat().st_size, "sha256": sums.get(name) or sha256_of(file)})
                sync(file)
            for name in unit.files:
                final = self._folder / name
                make_folder(final.parent)
                os.replace(part / name, final)
                sync(final.parent)
            self._add(entries)
        except OSError as error:
            raise self._refused(self.target / unit.files[0], error) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def unfinished_bytes(self) -> int:
        """Bytes of the files that are being written."""
        total = 0
        for folder, _, files in os.walk(self._parts):
            for name in files:
                with contextlib.suppress(OSError):  # it was just renamed
                    total += os.stat(os.path.join(folder, name)).st_size
        return total

    @contextlib.contextmanager
    def finishing(self):  # noqa: ANN201
        """The folder, for the small files that are written last."""
        try:
            make_folder(self._folder)
            yield self._folder
        except OSError as error:
            raise self._refused(self.target, error) from error

    def commit(self) -> None:
        """Adds SHA256SUMS and puts the folder under its final name."""
        try:
            lines = []
            for file in sorted(path for path in self._folder.rglob("*") if path.is_file()):
                name = str(file.relative_to(self._folder))
                if name != SUMS:
                    lines.append(f"{self.done[name][1] if name in self.done else sha256_of(file)}  {name}\n")
            commit_file(self._folder / SUMS, "".join(lines).encode())
        except OSError as error:
            raise self._refused(self.target, error) from error
        commit_folder(self._folder, self.target)
        shutil.rmtree(self._work, ignore_errors=True)

    def _refuse_existing(self) -> None:
        if os.path.lexists(self.target):
            raise StoreError(
                "there is something under this name already", where=self.target,
                way_out="delete it to make it again, or choose another name",
            )  # fmt: skip

    def _refuse_what_is_not_ours(self) -> None:
        """A working folder is emptied where it cannot be continued, so it must be one that we have made."""
        if not os.path.lexists(self._work):
            return
        places = [self._work, self._folder, self._parts]
        real = all(stat.S_ISDIR(os.lstat(place).st_mode) for place in places if os.path.lexists(place))
        if not real or (any(self._work.iterdir()) and not (self._work / "lock").is_file()):
            raise StoreError(
                "something else stands where the checkpoint would be made", where=self._work,
                way_out="move it away, or choose another name",
            )  # fmt: skip

    def _take_up(self, identity: Mapping[str, Any]) -> None:
        """What an earlier attempt has left is used if it is of the same checkpoint, else deleted."""
        shutil.rmtree(self._parts, ignore_errors=True)
        lines = _whole_lines(self._ledger)
        before = lines[0].get("identity") if lines else None
        now = json.loads(json.dumps(dict(identity)))
        if before == now:
            for entry in lines[1:]:
                with contextlib.suppress(OSError, KeyError, TypeError):
                    if (self._folder / entry["name"]).stat().st_size == entry["size"]:
                        self.done[entry["name"]] = entry["size"], entry["sha256"]
        elif lines:
            theirs = before if isinstance(before, dict) else {}
            differ = (f"{key} was {theirs.get(key)}, is {now[key]}" for key in now if theirs.get(key) != now[key])
            self.afresh = ", ".join(differ) or "another version of this package"
        if self._folder.is_dir():
            for file in [path for path in self._folder.rglob("*") if not path.is_dir() or path.is_symlink()]:
                if str(file.relative_to(self._folder)) not in self.done:
                    file.unlink()
            # An empty folder of another format would make the result look like that one.
            for folder, _, _ in os.walk(self._folder, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        entries = [{"name": name, "size": size, "sha256": sha} for name, (size, sha) in self.done.items()]
        # Written anew: a torn last line would swallow the next one.
        commit_file(self._ledger, "".join(json.dumps(line) + "\n" for line in [{"identity": now}, *entries]).encode())

    def _add(self, entries: list[dict]) -> None:
        text = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
        with self._adding:
            file = os.open(self._ledger, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(file, text)
            finally:
                os.close(file)
            self.done.update({entry["name"]: (entry["size"], entry["sha256"]) for entry in entries})

    def _refused(self, where: Path, error: OSError) -> StoreError:
        full = error.errno in _FULL
        return StoreError(
            "cannot be written" if full else "cannot be made", where=where, found=error.strerror or str(error),
            way_out=f"make room and give the same command again, which goes on with {self._work}" if full
            else "put that right, or choose another folder, and give the command again",
        )  # fmt: skip


def _whole_lines(ledger: Path) -> list[dict]:
    """The lines of a ledger; one that was torn by a kill, and what follows it, does not count."""
    lines = []
    with contextlib.suppress(OSError, ValueError):
        for line in ledger.read_bytes().splitlines():
            entry = json.loads(line)
            if not isinstance(entry, dict):
                break
            lines.append(entry)
    return lines
