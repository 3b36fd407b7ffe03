"""NeMo 2 folders that somebody has tampered with: pickles in every place, archives that lie, an index that lies.

`cases` gives folders that must be refused, `ignored` folders whose traps lie where nothing is ever opened.
Whatever runs code in them makes the file `canary(tmp)`.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

NORM = "module.decoder.final_layernorm.weight"
"""The tensor whose record is exchanged; a vector, so that the archive is small."""


def canary(tmp: Path) -> Path:
    return tmp / "CODE-RAN"


def cases(good: Path, tmp: Path) -> dict[str, Path]:
    """Name -> a copy of a good folder with one thing wrong in it."""
    made = {}
    command = f"touch {canary(tmp)}"
    for name, program in programs(command).items():
        made[f"index: {name}"] = _copy(good, tmp, name, lambda folder, p=program: _index(folder).write_bytes(p))
    for name, change in (edits() | renames(command)).items():
        made[f"index: {name}"] = _copy(good, tmp, name, change)
    for name, record in records(good, command).items():
        made[f"archive: {name}"] = _copy(good, tmp, name, lambda folder, r=record: _exchange(folder, r))
    for name, change in others(tmp, command).items():
        made[name] = _copy(good, tmp, name, change)
    return made


def ignored(good: Path, tmp: Path) -> dict[str, Path]:
    """Traps in files that a reader of weights has no business to open."""
    evil = pickle.dumps(_Runs(f"touch {canary(tmp)}"))

    def leaf(folder: Path) -> None:
        (folder / "context").mkdir(exist_ok=True)
        (folder / "context" / "io.json").write_text(json.dumps({"root": {"type": "leaf", "value": "leaf"}}))
        (folder / "context" / "leaf").write_bytes(evil)

    return {
        "common.pt": _copy(good, tmp, "common", lambda folder: (folder / "weights" / "common.pt").write_bytes(evil)),
        "a pickled leaf": _copy(good, tmp, "leaf", leaf),
        "extra state": _copy(good, tmp, "state", lambda folder: _every_state(folder, evil)),
    }


def programs(command: str) -> dict[str, bytes]:
    """Whole pickles in place of the index."""
    text = command.encode()
    short = b"\x8c" + bytes([len(text)]) + text
    b4 = b"\x80\x04"

    def named(module: str, attr: str) -> bytes:
        return b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attr)) + b"\x93"

    call = short + b"\x85R."
    laughs = b4 + b")\x94" + b"".join(b"(" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"t\x94" for i in range(60)) + b"."
    lists = b4 + b"]\x94" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"e\x94" for i in range(60)) + b"."
    meta = "torch.distributed.checkpoint.metadata"
    return {
        "os.system by GLOBAL": b"cos\nsystem\n(S'" + text + b"'\ntR.",
        "os.system by GLOBAL, protocol 2": b"\x80\x02cos\nsystem\nX" + struct.pack("<I", len(text)) + text + b"\x85R.",
        "posix.system by STACK_GLOBAL": b4 + named("posix", "system") + call,
        "subprocess by STACK_GLOBAL": b4 + named("subprocess", "getoutput") + call,
        "eval": b4 + named("builtins", "eval") + b"\x8c\x04open\x85R.",
        "exec": b4 + named("builtins", "exec") + b"\x8c\x04pass\x85R.",
        "getattr": b4 + named("builtins", "getattr") + b"N\x8c\x01a\x86R.",
        "import": b4 + named("importlib", "import_module") + b"\x8c\x02os\x85R.",
        "a dotted way through torch": b4 + named("torch.nn.utils.rnn", "torch.os.system") + call,
        "a dotted attribute of an allowed module": b4 + named(meta, "os.system") + call,
        "a dotted attribute of an allowed class": b4 + named("torch", "Size.__class__") + call,
        "an allowed module under another name": b4 + named("torch.distributed.checkpoint", "metadata.os.system") + call,
        "a name from the memo": b4 + b"\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93" + call,
        "a name that is joined": b4 + b"\x8c\x02os\x94h\x00\x8c\x06system\x93" + call,
        "torch.load": b4 + named("torch", "load") + call,
        "torch's own rebuilding": b4 + named("torch._utils", "_rebuild_tensor_v2") + b")R.",
        "numpy's own rebuilding": b4 + named("numpy.core.multiarray", "_reconstruct") + b")R.",
        "cloudpickle": b4 + named("cloudpickle.cloudpickle", "_make_function") + b")R.",
        "torch's JIT": b4 + named("torch.jit", "load") + call,
        "INST": b"(S'" + text + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + text + b"'\no.",
        "NEWOBJ_EX": b4 + named(meta, "Metadata") + b")}\x92.",
        "EXT1": b4 + b"\x82\x01.",
        "EXT4": b4 + b"\x84\x01\x00\x00\x00.",
        "PERSID": b"Pstorage\n.",
        "BINPERSID": b4 + b"\x8c\x07storageQ.",
        "DUP": b4 + b"N20.",
        "POP": b4 + b"NN0.",
        "BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        "NEXT_BUFFER": b"\x80\x05\x97.",
        "tuples that double sixty times": laughs,
        "lists that double sixty times": lists,
        "a million open marks": b4 + b"(" * 1_000_000 + b".",
        "a million open lists": b4 + b"]" * 1_000_000 + b".",
        "a million nested tuples": b4 + b"N" + b"\x85" * 1_000_000 + b".",
        "a million memos": b4 + b"N" + b"\x94" * 1_000_000 + b".",
        "a number of a million bytes": b4 + b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20) + b".",
        "a decimal number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "a string that claims 2 to the 60 bytes": b4 + b"\x8d" + struct.pack("<Q", 1 << 60) + b"a.",
        "a string of a megabyte": b4 + b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b".",
        "a frame that claims too much": b4 + b"\x95" + struct.pack("<Q", 1 << 40) + b"N.",
        "a protocol that does not exist": b"\x80\xffN.",
        "an opcode that does not exist": b4 + b"\xff.",
        "a second pickle behind the first": b4 + b"N." + b"cos\nsystem\n" + call,
        "no end": b4 + b"N",
        "nothing": b"",
        "only an end": b4 + b".",
        "a memo that was never set": b4 + b"h\x05.",
        "a memo that is set twice": b4 + b"Nq\x00Nq\x00\x86.",
        "a state for a class": b4 + named(meta, "Metadata") + b"}b.",
        "a state that is set twice": b4 + named(meta, "Metadata") + b")R}b}b.",
        "a mark where a value should be": b4 + b"(\x85.",
        "a key without a value": b4 + b"}(Nu.",
        "items for what is no list": b4 + b"}(Ne.",
        "a call of a call": b4 + named(meta, "Metadata") + b")R)R.",
        "a string in place of the index": b4 + b"\x8c\x04open.",
        "an index without a state": b4 + named(meta, "Metadata") + b")\x81.",
        "an index without tensors": b4 + named(meta, "Metadata") + b")\x81}b.",
    }


def renames(command: str) -> dict[str, Callable[[Path], None]]:
    """The good index with one name exchanged for another one, at the same place."""

    def exchange(old: bytes, new: bytes) -> Callable[[Path], None]:
        assert len(old) == len(new)

        def change(folder: Path) -> None:
            content = _index(folder).read_bytes()
            assert old in content
            _index(folder).write_bytes(content.replace(old, new))

        return change

    return {
        "a class of torch exchanged": exchange(b"_StorageInfo", b"FileSystemWr"),
        "a class of torch spelt otherwise": exchange(b"MetadataIndex", b"MetadataIndey"),
    }


def edits() -> dict[str, Callable[[Path], None]]:
    """An index that torch itself wrote and that says what is not so."""

    def stored(**fields: Any) -> Callable[[Any], None]:
        def change(metadata: Any) -> None:
            info = next(info for key, info in metadata.storage_data.items() if key.fqn == NORM)
            for name, value in fields.items():
                setattr(info, name, value)

        return change

    def overlap(metadata: Any) -> None:
        first, second = list(_stored_tensors(metadata).values())[:2]
        second.relative_path, second.offset = first.relative_path, first.offset + 1

    def same(metadata: Any) -> None:
        first, second = list(_stored_tensors(metadata).values())[:2]
        second.relative_path, second.offset, second.length = first.relative_path, first.offset, first.length

    def hole(metadata: Any) -> None:
        metadata.state_dict_metadata["module.embedding.word_embeddings.weight"].chunks.pop()

    def no_grid(metadata: Any) -> None:
        import torch

        chunk = metadata.state_dict_metadata["module.decoder.layers.self_attention.linear_qkv.weight"].chunks[0]
        chunk.sizes = torch.Size((chunk.sizes[0], chunk.sizes[1] - 1, chunk.sizes[2]))

    def nowhere(metadata: Any) -> None:
        metadata.storage_data = {key: info for key, info in metadata.storage_data.items() if key.fqn != NORM}

    def twice(metadata: Any) -> None:
        chunks = metadata.state_dict_metadata["module.embedding.word_embeddings.weight"].chunks
        chunks.append(chunks[0])

    def larger(metadata: Any) -> None:
        import torch

        metadata.state_dict_metadata[NORM].size = torch.Size([1 << 30])

    def dtype(name: str) -> Callable[[Any], None]:
        def change(metadata: Any) -> None:
            import torch

            metadata.state_dict_metadata[NORM].properties.dtype = getattr(torch, name)

        return change

    def flattened(metadata: Any) -> None:
        metadata.mcore_data = {NORM: {"nd_reformulated_orig_global_shape": (4,)}}

    def gone(metadata: Any) -> None:
        del metadata.state_dict_metadata[NORM]

    def other_key(metadata: Any) -> None:
        metadata.state_dict_metadata["vision.weight"] = metadata.state_dict_metadata[NORM]

    changes = {
        "a file above": stored(relative_path="../weights/__0_0.distcp"),
        "an absolute file": stored(relative_path="/etc/passwd"),
        "a file of another kind": stored(relative_path="common.pt"),
        "a path that is no string": stored(relative_path=7),
        "a record behind the end": stored(offset=1 << 40),
        "a record before the beginning": stored(offset=-1),
        "a record that is too short": stored(length=50),
        "a record that is cut": stored(length=1000),
        "a record without end": stored(length=1 << 62),
        "a compressed record": stored(transform_descriptors=["zstd"]),
        "records that overlap": overlap,
        "two blocks in one record": same,
        "a block that is missing": hole,
        "a block that stands twice": twice,
        "a block of another size than its neighbours": no_grid,
        "a block that is nowhere": nowhere,
        "a tensor larger than its blocks": larger,
        "a dtype of integers": dtype("int8"),
        "another dtype than the record's": dtype("float64"),
        "a flattened weight": flattened,
        "a tensor that is missing": gone,
        "a tensor outside the model": other_key,
    }  # fmt: skip
    return {name: lambda folder, c=change: _edit(folder, c) for name, change in changes.items()}


def records(good: Path, command: str) -> dict[str, bytes]:
    """Archives in place of the record of `NORM`."""
    import torch

    raw = _record(good)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    root = next(iter(members)).split("/")[0]
    data, tensor = f"{root}/data/0", f"{root}/data.pkl"
    whole = torch.load(io.BytesIO(raw), weights_only=True)

    def zipped(change: dict[str, bytes] | None = None, *, drop: str = "", method: int = zipfile.ZIP_STORED) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            for name, content in (members | (change or {})).items():
                if name != drop:
                    archive.writestr(name, content)
        return out.getvalue()

    def saved(value: Any) -> bytes:
        out = io.BytesIO()
        torch.save(value, out)
        return out.getvalue()

    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        for name, content in [*members.items(), (tensor, members[tensor])]:
            archive.writestr(name, content)
    plain = zipped()
    central = plain.index(b"PK\x01\x02")
    sizes = plain.index(data.encode(), central) - 46
    order = f"{root}/byteorder"
    inside = plain[plain.index(order.encode()) - 30 :][: 30 + len(order) + 6]  # that member, hidden in the raw bytes
    nested = zipped({data: inside.ljust(len(members[data]), b"\0")})
    where = nested.index(inside, nested.index(data.encode()))
    field = nested.index(order.encode(), nested.index(b"PK\x01\x02")) - 46 + 42
    reduce = b"\x80\x02cos\nsystem\nX" + struct.pack("<I", len(command)) + command.encode() + b"\x85R."
    return {
        "a call of os.system": zipped({tensor: reduce}),
        "a call behind the tensor": zipped({tensor: members[tensor][:-1] + b"0" + reduce[2:]}),
        "a storage of another kind": zipped({tensor: members[tensor].replace(b"Storage", b"Wtorage")}),
        "a pickle in place of an archive": pickle.dumps(_Runs(command)) + bytes(200),
        "the old format of torch": _legacy(whole),
        "deflated members": zipped(method=zipfile.ZIP_DEFLATED),
        "a member twice": twice.getvalue(),
        "no tensor": zipped(drop=tensor),
        "no raw bytes": zipped(drop=data),
        "a pickle of 8 kB": zipped({tensor: members[tensor] + bytes(8192)}),
        "no byte order": zipped(drop=f"{root}/byteorder"),
        "the other byte order": zipped({f"{root}/byteorder": b"big"}),
        "too few raw bytes": zipped({data: members[data][:-1]}),
        "too many raw bytes": zipped({data: members[data] + b"\0"}),
        "two roots": zipped({"other/data.pkl": members[tensor]}),
        "a comment at the end": plain[:-2] + struct.pack("<H", 4) + b"evil",
        "a comment that is not there": plain[:-2] + struct.pack("<H", 4),
        "a directory that claims no members": _patched(plain, len(plain) - 12, struct.pack("<H", 0)),
        "a directory that claims more members": _patched(plain, len(plain) - 12, struct.pack("<H", 60000)),
        "a directory elsewhere": _patched(plain, len(plain) - 6, struct.pack("<I", 1 << 30)),
        "a member behind the end": _patched(plain, sizes + 42, struct.pack("<I", 1 << 30)),
        "a member that claims 4 GB": _patched(plain, sizes + 20, struct.pack("<II", (1 << 32) - 2, (1 << 32) - 2)),
        "a member with a zip64 size that is not there": _patched(plain, sizes + 20, b"\xff" * 8),
        "members that overlap": _patched(nested, field, struct.pack("<I", where)),
        "a member whose own header says deflated": _patched(plain, plain.index(data.encode()) - 30 + 8, b"\x08\0"),
        "a member whose own header names another": _patched(plain, plain.index(data.encode()), b"Z"),
        "a tensor of another shape": saved(whole.view(1, 1, -1)),
        "a longer tensor": saved(torch.cat((whole, whole))),
        "a tensor that is not dense": saved(torch.stack((whole, whole), 1)[:, 0]),
        "a tensor of another dtype": saved(whole.to(torch.int16)),
        "a list": saved([whole]),
        "a parameter": saved(torch.nn.Parameter(whole)),
        "a sparse tensor": saved(whole.to_sparse()),
        "nothing": b"",
        "noise": bytes(range(256)) * 8,
    }  # fmt: skip


def others(tmp: Path, command: str) -> dict[str, Callable[[Path], None]]:
    """What is not the index and not an archive."""
    outside = tmp / "outside.distcp"

    def link(folder: Path) -> None:
        file = next((folder / "weights").glob("__0_0.distcp"))
        shutil.copy(file, outside)
        file.unlink()
        file.symlink_to(outside)

    def no_file(folder: Path) -> None:
        (folder / "weights" / "__0_0.distcp").unlink()

    def cut(folder: Path) -> None:
        for file in (folder / "weights").glob("__*.distcp"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def text(name: str, content: str, *without: str) -> Callable[[Path], None]:
        def change(folder: Path) -> None:
            for other in without:
                (folder / other).unlink()
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)

        return change

    def listed_twice(folder: Path) -> None:
        """One key twice in a dict: no Python dict can hold that, a pickle can."""
        import torch

        def change(metadata: Any) -> None:
            keys = [key for key in metadata.storage_data if key.fqn == "module.decoder.layers.mlp.linear_fc1.weight"]
            object.__setattr__(keys[1], "offset", torch.Size((0xEE, 0, 0)))

        _edit(folder, change)
        content = _index(folder).read_bytes()
        assert content.count(b"K\xeeK\x00K\x00") == 1
        _index(folder).write_bytes(content.replace(b"K\xeeK\x00K\x00", b"K\x00K\x00K\x00"))

    def stranger(folder: Path) -> None:
        def change(metadata: Any) -> None:
            name = "module.decoder.adapter.weight"
            metadata.state_dict_metadata[name] = metadata.state_dict_metadata[NORM]
            key, info = next((key, info) for key, info in metadata.storage_data.items() if key.fqn == NORM)
            shutil.copy(folder / "weights" / info.relative_path, folder / "weights" / "__7_7.distcp")
            metadata.storage_data[type(key)(name, key.offset)] = type(info)("__7_7.distcp", info.offset, info.length)

        _edit(folder, change)

    tag = f"config: !!python/object/apply:os.system ['{command}']"
    return {
        "a link out of the folder": link,
        "a file that is missing": no_file,
        "a tensor that no model has": stranger,
        "a block that is listed twice": listed_twice,
        "files that are cut": cut,
        "a YAML tag in model_config.yaml": text("model_config.yaml", tag),
        "a YAML tag in context/model.yaml": text("context/model.yaml", tag, "model_config.yaml"),
        "a model.yaml without a config": text("context/model.yaml", "_target_: os.system", "model_config.yaml"),
        "another backend": text("weights/metadata.json", '{"sharded_backend": "zarr"}'),
        "a backend that is no JSON": text("weights/metadata.json", "[" * 100_000),
        "a backend that is a list": text("weights/metadata.json", "[]"),
    }


class _Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        import os

        return os.system, (self.command,)


def _legacy(tensor: Any) -> bytes:
    import torch

    out = io.BytesIO()
    torch.save(tensor, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def _patched(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def _copy(good: Path, tmp: Path, name: str, change: Callable[[Path], None]) -> Path:
    number = len(list(tmp.glob("case-*")))
    folder = tmp / f"case-{number:03d}-{'-'.join(name.split())[:60].replace('/', '')}"
    shutil.copytree(good, folder)
    change(folder)
    return folder


def _index(folder: Path) -> Path:
    return folder / "weights" / ".metadata"


def _edit(folder: Path, change: Callable[[Any], None]) -> None:
    metadata = pickle.loads(_index(folder).read_bytes())
    change(metadata)
    _index(folder).write_bytes(pickle.dumps(metadata))


def _stored_tensors(metadata: Any) -> dict[Any, Any]:
    return {key: info for key, info in metadata.storage_data.items() if key.offset is not None}


def _record(folder: Path) -> bytes:
    metadata = pickle.loads(_index(folder).read_bytes())
    info = next(info for key, info in metadata.storage_data.items() if key.fqn == NORM)
    content = (folder / "weights" / info.relative_path).read_bytes()
    return content[info.offset : info.offset + info.length]


def _exchange(folder: Path, record: bytes) -> None:
    """Put a record into a file of its own and let the index point at it."""
    (folder / "weights" / "__9_9.distcp").write_bytes(b"\0" * 128 + record)

    def change(metadata: Any) -> None:
        info = next(info for key, info in metadata.storage_data.items() if key.fqn == NORM)
        info.relative_path, info.offset, info.length = "__9_9.distcp", 128, len(record)

    _edit(folder, change)


def _every_state(folder: Path, evil: bytes) -> None:
    (folder / "weights" / "__8_8.distcp").write_bytes(evil)

    def change(metadata: Any) -> None:
        for key, info in metadata.storage_data.items():
            if key.offset is None:
                info.relative_path, info.offset, info.length = "__8_8.distcp", 0, len(evil)

    _edit(folder, change)
