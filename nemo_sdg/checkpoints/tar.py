"""A `.nemo` file: an uncompressed tar whose members are read where they lie. Nothing is ever extracted.

Every header is checked before any member counts. What tar programs disagree about (a name or a size that stands
twice, links, sparse members, bytes after the end) is refused by name, so that this package reads what a scanner
saw. Format: POSIX.1-2017, `pax` (ustar interchange format), and the GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import bisect
import os
import stat
import unicodedata
from pathlib import Path

from nemo_sdg.checkpoints.files import Files, Member
from nemo_sdg.errors import CheckpointError

BLOCK = 512
_MOST_MEMBERS = 100_000
"""The released 340B folders have about 5,000 files."""
_MOST_AFTER = 1 << 20
"""Zeros that may fill the last record: 10 KiB for tar's usual blocking."""
_MOST_PAX = 1 << 16
_KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a character device", b"4": "a block device", b"6": "a FIFO",
    b"7": "a contiguous file", b"L": "a GNU header with a second name", b"K": "a GNU header with a second link name",
    b"S": "a sparse file", b"M": "the rest of a file of another volume",
}  # fmt: skip
_COMPRESSED = {
    b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"\x28\xb5\x2f\xfd": "unzstd",
    b"PK\x03\x04": "unzip",
}  # fmt: skip
_HARMLESS = ("mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment")
_WAY_OUT = "unpack it with a program that you trust, look at it, and pack it again with `tar --format=ustar -cf`"


class TarFiles(Files):
    """The members of a tar file as the files of a checkpoint.

    Raises:
        CheckpointError: it is no tar, or a member is one that should not be there; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self.where = path
        self._members: dict[str, Member] = {}
        self._folders: dict[str, dict[str, bool]] = {"": {}}
        self._at: dict[int, Member] = {}
        self._starts: list[int] | None = None
        self._spelled: dict[str, str] = {}
        descriptor = self.open(path)
        try:
            _Reader(descriptor, path, self._add).run()
        finally:
            os.close(descriptor)

    def find(self, name: str) -> Member | None:
        return self._members.get(name)

    def entries(self, folder: str = "") -> dict[str, bool]:
        return dict(sorted(self._folders.get(folder, {}).items()))

    def names(self) -> list[str]:
        return sorted(self._members)

    def block(self, name: str, size: int) -> tuple[Path, int, int | None]:
        """As `Files.block`; the size is checked here, for a reader sees the whole tar."""
        member = self._members.get(name)
        if member is None or member.size != size:
            raise CheckpointError(
                "a chunk is missing" if member is None else "a chunk has the wrong size", where=self.path(name),
                found="no such member" if member is None else f"{member.size} bytes", expected=f"{size} bytes",
                way_out="download the file again",
            )  # fmt: skip
        return self.where, member.offset, None

    def holding(self, file: Path, offset: int) -> Member:
        if self._starts is None:
            self._starts = sorted(self._at)
        return self._at[self._starts[bisect.bisect_right(self._starts, offset) - 1]]

    def open(self, file: Path) -> int:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if file != self.where or not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CheckpointError("not a regular file", where=file, expected="a .nemo file")
        return descriptor

    def _check(self, path: Path, mode: int) -> None:
        if path != self.where:
            raise CheckpointError("not a part of the checkpoint", where=path, expected=self.where)

    def _add(self, name: str, offset: int, size: int | None) -> None:
        """Takes a member up; `size` None is a folder."""
        is_folder = size is None
        same = self._spelled.setdefault(unicodedata.normalize("NFC", name), name)
        twice = name in self._members or name in self._folders
        if same != name or (twice and not (is_folder and name in self._folders)):
            _refuse(self.where, name, "the name stands twice", found=repr(same))
        parent, _, last = name.rpartition("/")
        if name:
            self._add_folders(parent, name)
            self._folders[parent][last] = is_folder
        if is_folder:
            self._folders.setdefault(name, {})
        else:
            self._members[name] = self._at[offset] = Member(name, self.where, offset, size)

    def _add_folders(self, folder: str, name: str) -> None:
        if folder.count("/") > 8:
            _refuse(self.where, name, "it lies too deep", found=f"{folder.count('/') + 1} folders")
        if folder in self._members:
            _refuse(self.where, name, "it lies in a member that is a file", found=folder)
        if folder not in self._folders:
            self._add(folder, 0, None)


class _Reader:
    """One pass over the headers."""

    def __init__(self, descriptor: int, where: Path, add) -> None:  # noqa: ANN001
        self.descriptor, self.where, self.add = descriptor, where, add
        self.end = os.fstat(descriptor).st_size

    def run(self) -> None:
        at, count, previous = 0, 0, "the beginning"
        while True:
            header = os.pread(self.descriptor, BLOCK, at)
            if len(header) < BLOCK:
                self._not_a_tar(at, header, previous)
            if not any(header):
                return self._after(at)
            self._check_header(header, at, previous)
            raw, kind = _name(header), header[156:157]
            previous = name = _normal(raw, self.where)
            size = _number(header[124:136], self.where, name)
            data = at + BLOCK
            if size > self.end - data:
                _refuse(self.where, name, "it is larger than the file", f"{size} bytes", f"at most {self.end - data}")
            count += 1
            if count > _MOST_MEMBERS:
                _refuse(self.where, name, "there are too many members", expected=f"at most {_MOST_MEMBERS}")
            if kind in (b"0", b"\0"):
                if raw.endswith(b"/") or not name:
                    _refuse(self.where, name, "a file has the name of a folder", found=repr(raw)[:80])
                self.add(name, data, size)
            elif kind == b"5":
                if size:
                    _refuse(self.where, name, "a folder has content", f"{size} bytes", "0 bytes")
                self.add(name, data, None)
            elif kind in (b"x", b"g"):
                if size > _MOST_PAX:
                    _refuse(self.where, name, "an extended header is too long", f"{size} bytes", f"at most {_MOST_PAX}")
                _check_extended(os.pread(self.descriptor, size, data), self.where, name)
            else:
                found = _KINDS.get(kind, f"type {kind!r}")
                _refuse(self.where, name, "neither a file nor a folder", found, "plain files and folders")
            at = data + -(-size // BLOCK) * BLOCK

    def _check_header(self, header: bytes, at: int, previous: str) -> None:
        total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
        stored = header[148:156].strip(b" \0")
        if header[257:262] != b"ustar" or not _is_octal(stored) or int(stored, 8) != total:
            self._not_a_tar(at, header, previous)

    def _not_a_tar(self, at: int, header: bytes, previous: str) -> None:
        for magic, program in _COMPRESSED.items():
            if at == 0 and header.startswith(magic):
                raise CheckpointError(
                    "the file is compressed, so it cannot be read in place", where=self.where,
                    expected="an uncompressed tar", way_out=f"unpack it with `{program}` first",
                )  # fmt: skip
        if at == 0:
            raise CheckpointError(
                "the file is not a tar archive", where=self.where, found=f"it begins with {header[:8]!r}",
                way_out="give a checkpoint's folder or a .nemo file",
            )  # fmt: skip
        _refuse(
            self.where, previous, "what follows it is no header of a member", f"{len(header)} bytes at {at}",
            way_out="the file may be cut short: download it again",
        )  # fmt: skip

    def _after(self, at: int) -> None:
        """Two blocks of zeros end the archive; nothing but zeros may follow."""
        rest = os.pread(self.descriptor, _MOST_AFTER, at)
        if len(rest) < 2 * BLOCK or self.end - at > _MOST_AFTER or any(rest):
            raise CheckpointError(
                "the archive does not end where its end is marked", where=self.where,
                found=f"{self.end - at} bytes there", expected=f"{2 * BLOCK} to {_MOST_AFTER} zeros", way_out=_WAY_OUT,
            )  # fmt: skip


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0":  # GNU's own format keeps other things there
        prefix = header[345:500].split(b"\0", 1)[0]
        if prefix:
            return prefix + b"/" + name
    return name


def _normal(raw: bytes, where: Path) -> str:
    """The name as `a/b`, without `./` before it."""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        _refuse(where, repr(raw)[:80], "the name is not UTF-8")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        _refuse(where, name, "the name leads out of the archive")
    if not name or any(ord(character) < 32 for character in name):
        _refuse(where, repr(name)[:80], "the name is empty or holds control characters")
    return "/".join(parts)


def _is_octal(digits: bytes) -> bool:
    return bool(digits) and not digits.strip(b"01234567")


def _number(field: bytes, where: Path, name: str) -> int:
    """A size: octal, or GNU's base 256 for 8 GiB and more."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not _is_octal(digits):
        _refuse(where, name, "the size is not a number", found=repr(field)[:80])
    return int(digits, 8)


def _check_extended(records: bytes, where: Path, name: str) -> None:
    """A pax header may tell times and owners; one that gives a member another name or size is refused."""
    at = 0
    while at < len(records):
        digits, space, _ = records[at : at + 8].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = records[at : at + length]
        key, equals, _ = record[len(digits) + 1 :].partition(b"=")
        if not equals or len(record) != length or not record.endswith(b"\n"):
            _refuse(where, name, "an extended header is broken", found=repr(records[at : at + 40])[:80])
        text = key.decode("utf-8", "replace")
        owners = text.startswith(("SCHILY.xattr.", "SCHILY.acl.", "LIBARCHIVE.", "RHT."))
        if text not in _HARMLESS and not owners:
            _refuse(
                where, name, "an extended header changes what a member is", repr(text)[:80], "times and owners only"
            )
        at += length


def _refuse(
    where: Path, name: str, what: str, found: object = None, expected: object = None, way_out: str = _WAY_OUT
) -> None:
    raise CheckpointError(f"member {name}: {what}", where=where, found=found, expected=expected, way_out=way_out)
