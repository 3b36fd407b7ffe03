"""One record of a .distcp file: an archive of `torch.save` with one tensor. Its raw bytes are found, not unpickled.

The archive is a zip whose members are stored as they are: `data.pkl` (read by `pickles`), `byteorder` and
`data/0`, the raw bytes. Layout: pytorch/pytorch caffe2/serialize/inline_container.cc, torch/_utils.py
(`_rebuild_tensor_v2`), and the zip specification (PKWARE APPNOTE 4.3).
"""

from __future__ import annotations

import math
import os
import struct
from functools import lru_cache
from typing import NoReturn

from nemo_sdg.checkpoints.nemo2 import pickles
from nemo_sdg.checkpoints.nemo2.pickles import Call, Name, Persistent
from nemo_sdg.checkpoints.tensors import ITEM_BYTES
from nemo_sdg.errors import CheckpointError

_REBUILD = Name("torch._utils", "_rebuild_tensor_v2")
_STORAGES = {
    "BFloat16Storage": "bf16", "HalfStorage": "fp16", "FloatStorage": "fp32", "DoubleStorage": "fp64"
}  # fmt: skip
NAMES = frozenset([_REBUILD, Name("collections", "OrderedDict"), *(Name("torch", name) for name in _STORAGES)])
"""All that the archive of a weight names."""
_END, _CENTRAL, _LOCAL = b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04"
_END64, _LOCATOR64 = b"PK\x06\x06", b"PK\x06\x07"
_AHEAD = 4096
"""Bytes that both ends of a record are read in; headers and the small members fit many times over."""
_MAX_DIRECTORY = 1 << 14
"""Bytes; torch writes some seven members of about 70."""


def find_bytes(
    descriptor: int, base: int, length: int, shape: tuple[int, ...], dtype: str, where: object, limit: int
) -> int:
    """Where the raw elements of a record's tensor begin in its file.

    Args:
        base, length: where the record lies.
        shape, dtype: what the index says of the block; the archive must say the same.
        limit: bytes of the file.
    Raises:
        CheckpointError: the record is not what torch.save writes of such a tensor.
    """
    return _Archive(descriptor, base, length, where, limit).tensor(shape, dtype)


@lru_cache(maxsize=1024)  # thousands of records differ in their raw bytes alone
def _described(pickle: bytes) -> tuple[str, int, str, int, tuple[int, ...]]:
    """Key, elements and dtype of the storage; first element and sizes of the tensor in it."""

    def refuse(what: str, found: object, expected: object = None) -> NoReturn:
        raise CheckpointError(what, found=found, expected=expected)

    made = pickles.load(pickle, NAMES, None, persistent=True)
    if type(made) is not Call or made.name != _REBUILD or made.state is not None or len(made.args) < 4:
        refuse("a record holds no plain tensor", getattr(made, "name", type(made).__name__))
    storage, at, sizes, strides = made.args[:4]
    key = storage.key if type(storage) is Persistent else None
    if type(key) is not tuple or len(key) != 5 or key[0] != "storage" or type(key[1]) is not Name:
        refuse("a record holds no plain tensor", "another storage")
    _, kind, name, _, items = key
    numbers = (at, items, *sizes, *strides) if type(sizes) is tuple and type(strides) is tuple else (None,)
    if kind.attr not in _STORAGES or not all(type(n) is int and 0 <= n < 1 << 50 for n in numbers):
        refuse("a record holds no plain tensor", "another storage")
    dense = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    if len(strides) != len(sizes) or any(s != d for s, d, n in zip(strides, dense, sizes) if n > 1):
        refuse("a tensor is not stored in C order", f"strides {strides}", f"{tuple(dense)}")
    if type(name) is not str or not name.isdecimal():
        refuse("a record holds no plain tensor", "another storage")
    return name, items, _STORAGES[kind.attr], at, sizes


class _Archive:
    def __init__(self, descriptor: int, base: int, length: int, where: object, limit: int) -> None:
        self.descriptor, self.base, self.length, self.where = descriptor, base, length, where
        if length < 100 or base + length > limit:
            self.refuse("a record does not lie in its file", f"bytes {base} to {base + length}", f"up to {limit}")
        self.head = self._bytes(0, min(_AHEAD, length))
        self.tail_at = max(0, length - _AHEAD)
        self.tail = self.head if length <= _AHEAD else self._bytes(self.tail_at, length - self.tail_at)

    def refuse(self, what: str, found: object, expected: object = "an archive as torch.save writes it") -> NoReturn:
        raise CheckpointError(
            what, where=self.where, found=found, expected=expected, way_out="download the checkpoint again"
        )

    def _bytes(self, start: int, count: int) -> bytes:
        content = os.pread(self.descriptor, count, self.base + start)
        if len(content) != count:
            self.refuse("the file is cut short", f"{len(content)} bytes", f"{count} bytes")
        return content

    def _cut(self, start: int, count: int) -> bytes:
        """Bytes of the record, from what was read of it if they are there."""
        if start < 0 or start + count > self.length:
            self.refuse("a member reaches out of its record", f"bytes {start} to {start + count} of {self.length}")
        if start + count <= len(self.head):
            return self.head[start : start + count]
        if start >= self.tail_at:
            return self.tail[start - self.tail_at : start - self.tail_at + count]
        return self._bytes(start, count)

    def tensor(self, shape: tuple[int, ...], dtype: str) -> int:
        members = self._members()
        roots = {name.split("/", 1)[0] for name in members}
        root = roots.pop() if len(roots) == 1 else self.refuse("the archive has not one root", sorted(roots)[:3])
        content = {}
        for part, most in (("data.pkl", _AHEAD), ("byteorder", 16)):
            start, size = members.get(f"{root}/{part}") or self.refuse("a member is missing", f"no {part}")
            if size > most:
                self.refuse("a member is too large", f"{part} of {size} bytes", f"at most {most} bytes")
            content[part] = self._cut(start, size)
        if content["byteorder"] != b"little":
            self.refuse("the byte order is not supported", repr(content["byteorder"])[:20], "little")
        try:
            key, items, found_dtype, at, sizes = _described(content["data.pkl"])
        except CheckpointError as error:
            self.refuse(error.what, error.found, error.expected or "a dense tensor as torch.save writes it")
        block = shape[1:] if len(sizes) == len(shape) - 1 and shape[:1] == (1,) else shape
        if sizes != block or found_dtype != dtype:
            self.refuse("a record holds another tensor", f"{found_dtype} {sizes}", f"{dtype} {shape}")
        start, size = members.get(f"{root}/data/{key}") or self.refuse("a member is missing", f"no data/{key}")
        item = ITEM_BYTES[dtype]
        if size != items * item or at + math.prod(shape) > items:
            self.refuse("a record has the wrong size", f"{size} bytes", f"{math.prod(shape) * item} bytes")
        return self.base + start + at * item

    def _members(self) -> dict[str, tuple[int, int]]:
        """Name -> where its content begins in the record, and its length; each stored as it is, once."""
        central, count = self._directory()
        members: dict[str, tuple[int, int]] = {}
        spans = []
        at = 0
        for _ in range(count):
            header = central[at : at + 46]
            if len(header) < 46 or header[:4] != _CENTRAL:
                self.refuse("the archive's directory is broken", f"no entry at byte {at}")
            flags, method = struct.unpack_from("<HH", header, 8)
            packed, size, name_length, extra_length, note_length = struct.unpack_from("<IIHHH", header, 20)
            offset = struct.unpack_from("<I", header, 42)[0]
            raw = central[at + 46 : at + 46 + name_length]
            extra = central[at + 46 + name_length : at + 46 + name_length + extra_length]
            at += 46 + name_length + extra_length + note_length
            packed, size, offset = self._wide(packed, size, offset, extra)
            name = raw.decode("utf-8", "replace")
            if method != 0 or packed != size or flags & 1:
                self.refuse("a member is compressed or encrypted", name[:80], "stored members, as torch.save writes")
            if name in members:
                self.refuse("a member stands twice in the archive", name[:80])
            local = self._cut(offset, 30)
            if local[:4] != _LOCAL or local[8:10] != b"\0\0":
                self.refuse("a member's own header differs from the directory", name[:80])
            inner, padding = struct.unpack_from("<HH", local, 26)
            if self._cut(offset + 30, inner) != raw:
                self.refuse("a member's own header differs from the directory", name[:80])
            start = offset + 30 + inner + padding
            self._cut(start + size, 0)
            members[name] = (start, size)
            spans.append((offset, start + size))
        spans.sort()
        if any(start < end for (_, end), (start, _) in zip(spans, spans[1:])):
            self.refuse("members of the archive overlap", f"{count} members")
        return members

    def _directory(self) -> tuple[bytes, int]:
        """The central directory and its number of entries. No comment may follow it."""
        end = self._cut(self.length - 22, 22)
        if end[:4] != _END or end[20:] != b"\0\0":
            self.refuse("a record is no archive", "no end of a zip directory", "an archive of torch.save")
        count, size, start = struct.unpack_from("<HII", end, 10)
        stop = self.length - 22
        locator = self._cut(stop - 20, 20) if stop >= 20 else b""
        if locator[:4] == _LOCATOR64:
            at = struct.unpack_from("<Q", locator, 8)[0]
            wide = self._cut(at, 56)
            if wide[:4] != _END64 or at + 56 != stop - 20:
                self.refuse("the archive's directory is broken", "another zip64 end")
            count, size, start = struct.unpack_from("<QQQ", wide, 32)
            stop = at
        if start + size != stop or size > _MAX_DIRECTORY:
            self.refuse("the archive's directory is broken", f"{count} members in {size} bytes at {start}")
        return self._cut(start, size), count

    def _wide(self, packed: int, size: int, offset: int, extra: bytes) -> tuple[int, int, int]:
        """Sizes and offset of an entry; those that do not fit 32 bits stand in its zip64 field."""
        if 0xFFFFFFFF not in (packed, size, offset):
            return packed, size, offset
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<HH", extra, at)
            field = extra[at + 4 : at + 4 + length]
            if kind == 1 and len(field) == length and length % 8 == 0:
                numbers = list(struct.unpack(f"<{length // 8}Q", field))
                wanted = [n == 0xFFFFFFFF for n in (size, packed, offset)]
                if sum(wanted) <= len(numbers):
                    size, packed, offset = (
                        numbers.pop(0) if wide else n for wide, n in zip(wanted, (size, packed, offset))
                    )
                    return packed, size, offset
            at += 4 + length
        self.refuse("the archive's directory is broken", "a member without its sizes")
