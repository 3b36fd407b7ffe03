"""Tar files for tests: as NeMo packs them, and with every member that must not be there."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from random_checkpoints import files_of


def pack(folder: Path, target: Path, *, layout: str = ".", kind: int = tarfile.PAX_FORMAT) -> Path:
    """As NeMo packs it (`tarfile.add(folder, arcname=".")`), or with bare names."""
    with tarfile.open(target, "w:", format=kind) as tar:
        if layout == ".":
            tar.add(folder, arcname=".")
        else:
            for name in sorted(files_of(folder)):
                tar.add(folder / name, arcname=name)
    return target


def member(name: str, data: bytes = b"x", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def raw_member(name: bytes, data: bytes = b"", kind: bytes = b"0", size: bytes | None = None) -> bytes:
    """A header of the old kind, byte by byte, for what tarfile would not write."""
    header = bytearray(512)
    header[: len(name)] = name
    header[100:124] = b"0000644\0" + b"0000000\0" * 2
    header[124:136] = size if size is not None else b"%011o\0" % len(data)
    header[136:148] = b"00000000000\0"
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    return bytes(header) + data + bytes(-len(data) % 512)


def pax(records: dict[str, str], kind: bytes = b"x") -> bytes:
    lines = []
    for key, value in records.items():
        rest = f" {key}={value}\n".encode()
        length = len(rest) + len(str(len(rest)))
        length += len(str(length)) - len(str(len(rest)))
        lines.append(str(length).encode() + rest)
    return raw_member(b"./PaxHeaders/x", b"".join(lines), kind)


END = bytes(1024)
LINK, HARD = {"type": tarfile.SYMTYPE, "size": 0}, {"type": tarfile.LNKTYPE, "size": 0}
TRICKS = {
    "parent": (member("../outside"), "outside", "leads out"),
    "parent in the middle": (member("a/../../outside"), "outside", "leads out"),
    "absolute": (member("/etc/nemo"), "/etc/nemo", "leads out"),
    "symbolic link": (member("tokenizer.link", b"", linkname="/etc/passwd", **LINK), "tokenizer.link", "a symbolic link"),
    "hard link": (member("again.model", b"", linkname="tokenizer.model", **HARD), "again.model", "a hard link"),
    "character device": (member("zero", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "zero", "a character device"),
    "block device": (member("disk", b"", type=tarfile.BLKTYPE), "disk", "a block device"),
    "fifo": (member("pipe", b"", type=tarfile.FIFOTYPE), "pipe", "a FIFO"),
    "contiguous": (member("fast", b"", type=tarfile.CONTTYPE), "fast", "a contiguous file"),
    "twice": (member("model_config.yaml"), "model_config.yaml", "stands twice"),
    "twice, with ./": (member("././/model_config.yaml"), "model_config.yaml", "stands twice"),
    "twice, other Unicode form": ([member("caf\u00e9"), member("cafe\u0301")], "caf", "stands twice"),
    "a folder where a file is": (member("model_config.yaml", b"", type=tarfile.DIRTYPE), "model_config.yaml", "stands twice"),
    "below a file": (member("model_config.yaml/x"), "model_config.yaml/x", "in a member that is a file"),
    "a file named as a folder": (raw_member(b"strange/", b"x"), "strange", "name of a folder"),
    "a folder with content": (raw_member(b"strange", b"x", b"5"), "strange", "a folder has content"),
    "not UTF-8": (raw_member(b"\xff\xfe", b"x"), "xff", "not UTF-8"),
    "no name": (raw_member(b"", b"x"), "''", "empty"),
    "control characters": (raw_member(b"a\x1b[2Jb", b"x"), "x1b", "control characters"),
    "larger than the file": (raw_member(b"huge", b"x", size=b"77777777777\0"), "huge", "larger than the file"),
    "larger than any file": (raw_member(b"huge", b"", size=b"\x80" + b"\xff" * 11), "huge", "larger than the file"),
    "negative": (raw_member(b"less", b"", size=b"\xff" * 12), "less", "not a number"),
    "size is no number": (raw_member(b"odd", b"", size=b"0x10\0      \0"), "odd", "not a number"),
    "pax gives another name": (pax({"path": "model_config.yaml"}) + raw_member(b"z", b"x"), "PaxHeaders", "'path'"),
    "pax gives another size": (pax({"size": "1"}) + raw_member(b"z", b"xyz"), "PaxHeaders", "'size'"),
    "pax gives a link": (pax({"linkpath": "/etc/passwd"}) + raw_member(b"z", b""), "PaxHeaders", "'linkpath'"),
    "pax for all members": (pax({"path": "z"}, b"g") + raw_member(b"z", b""), "PaxHeaders", "'path'"),
    "pax is broken": (raw_member(b"p", b"99 path=x\n", b"x") + raw_member(b"z", b""), "p", "is broken"),
    "pax is long": (raw_member(b"p", b"x" * (1 << 17), b"x"), "p", "too long"),
    "sparse, pax": (pax({"GNU.sparse.realsize": "99999999"}) + raw_member(b"z", b""), "PaxHeaders", "GNU.sparse"),
    "sparse, GNU": (raw_member(b"holes", b"", b"S"), "holes", "a sparse file"),
    "a long name beside": (raw_member(b"././@LongLink", b"tokenizer.model\0", b"L"), "@LongLink", "a second name"),
    "a long link beside": (raw_member(b"././@LongLink", b"/etc/passwd\0", b"K"), "@LongLink", "a second link name"),
    "unknown kind": (raw_member(b"what", b"", b"Z"), "what", "b'Z'"),
}  # fmt: skip


def add_members(target: Path, trick: object) -> None:
    """Puts members behind those of a good archive."""
    if isinstance(trick, bytes):
        tail = trick
    else:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
            for info, data in trick if isinstance(trick, list) else [trick]:
                tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
        tail = stream.getvalue()[: tar.offset]
        tail = tail[: len(tail) - 1024] if tail.endswith(END) else tail
    whole = target.read_bytes()
    target.write_bytes(whole[: len(whole.rstrip(b"\0")) // 512 * 512 + 512] + tail + END)
