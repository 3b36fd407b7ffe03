"""Checkpoints that somebody has tampered with, in every format: what they are, and what must become of each.

Each case is a copy of a good checkpoint with one thing wrong in it. Whatever runs code in one makes the file that
`canary` names.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from audit import Seen, watched
from checkpoints import hostile_nemo2
from random_checkpoints import TOKENIZER, little_shape, random_bits, read_bits, write_release
from tars import END, TRICKS, add_members, pack, raw_member

from nemo_sdg import resources
from nemo_sdg.checkpoints.convert import convert
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.survey import survey
from nemo_sdg.checkpoints.verify import verify
from nemo_sdg.console import Console
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.tokenizer import Tokenizer

W = "model_weights"
EMBEDDING = f"{W}/model.embedding.word_embeddings.weight"
QKV = f"{W}/model.decoder.layers.self_attention.linear_qkv.weight"
FC1 = f"{W}/model.decoder.layers.mlp.linear_fc1.weight"
SAFE = "model.safetensors"

LIMIT_S = 2.0
"""Of CPU time, for a refusal."""

Change = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A tampered checkpoint."""

    name: str
    path: Path
    names: str | None
    """What the refusal must name; None if the trap lies where nothing looks, and the checkpoint is good."""


def canary(tmp: Path) -> Path:
    return hostile_nemo2.canary(tmp)


def good_ones(tmp: Path) -> dict[str, Path]:
    """The same small model in every format."""
    shape = little_shape(num_layers=2)
    made = {"release": write_release(tmp / "good" / "release", shape, random_bits(shape))}
    for to in ("hf", "nemo2"):
        made[to] = tmp / "good" / to
        convert(str(made["release"]), made[to], to, Console(io.StringIO()))
        (made[to] / "SHA256SUMS").unlink()  # or every change would be found by it
    made["nemo"] = pack(made["release"], tmp / "good" / "x.nemo")
    return made


def all_cases(good: dict[str, Path], tmp: Path) -> list[Case]:
    """Every case, on disk below `tmp`."""
    made = []
    command = f"touch {canary(tmp)}"
    for kind, cases in (("release", released(tmp, command)), ("hf", hugging_face(tmp, command))):
        for name, (change, who) in cases.items():
            path = tmp / kind / name.replace(" ", "-").replace("/", "_")
            shutil.copytree(good[kind], path, symlinks=True)
            change(path)
            made.append(Case(f"{kind}: {name}", path, who))
    for name, (trick, who, _) in TRICKS.items():
        path = tmp / "tars" / f"{name.replace(' ', '-').replace('/', '_')}.nemo"
        path.parent.mkdir(exist_ok=True)
        pack(good["release"], path, kind=0)
        add_members(path, trick)
        made.append(Case(f"nemo: {name}", path, who))
    made += _whole_tars(good, tmp, command)
    for place in ("nemo2", "nemo2-ignored"):
        (tmp / place).mkdir()
    # Every refusal names the folder at least; which tensor or file, each of the cases' own tests asks.
    made += [Case(f"nemo2: {n}", p, str(p)) for n, p in hostile_nemo2.cases(good["nemo2"], tmp / "nemo2").items()]
    made += [
        Case(f"nemo2: {n}", p, None) for n, p in hostile_nemo2.ignored(good["nemo2"], tmp / "nemo2-ignored").items()
    ]
    return made


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def evil_array(command: str) -> bytes:
    """A .npy of dtype object, which numpy unpickles where it is allowed to."""
    stream = io.BytesIO()
    np.save(stream, np.array([Runs(command)], dtype=object), allow_pickle=True)
    return stream.getvalue()


def write(name: str, content: bytes | str) -> Change:
    data = content.encode() if isinstance(content, str) else content

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)

    return change


def edit(name: str, **fields: object) -> Change:
    """Other values in a JSON file."""

    def change(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))

    return change


def append(name: str, text: str) -> Change:
    """More lines in a YAML file; of a key that stands twice, the last counts."""
    return lambda folder: (folder / name).write_text((folder / name).read_text() + text + "\n")


def replace(name: str, make: Callable[[Path], object]) -> Change:
    """Something else in place of a file or a folder."""

    def change(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        make(path)

    return change


def link(name: str, target: object) -> Change:
    return replace(name, lambda path: path.symlink_to(target))


def sparse(name: str, size: int) -> Change:
    def make(path: Path) -> None:
        with open(path, "wb") as file:
            file.truncate(size)

    return replace(name, make)


def released(tmp: Path, command: str) -> dict[str, tuple[Change, str | None]]:
    """Of the released layout."""
    trap = pickle.dumps(Runs(command), 0)
    outside = tmp / "outside"
    outside.mkdir()
    (outside / "0.0").write_bytes(b"secret")
    (outside / "model_config.yaml").write_text("num_layers: 2")
    unfold = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
    )
    merge = unfold.replace("[x, x, x, x, x, x, x, x, x, x]", "{x: 1}").replace(": &", ": &").replace(" [*", " {<<: [*")
    merge = merge.replace("]\n", "]}\n")
    tag = "!!python/object"
    config, header, model = "model_config.yaml", f"{QKV}/.zarray", "tokenizer.model"
    cases: dict[str, tuple[Change, str | None]] = {
        "a pickle as common.pt": (write(f"{W}/common.pt", trap), None),
        "a pickle as extra state": (write(f"{W}/model.decoder.layers.mlp.linear_fc1._extra_state/shard_0_2.pt", trap), None),
        "extra state of objects": (
            lambda f: (
                write(f"{W}/model.decoder._extra_state/.zarray", json.dumps({"dtype": "|O", "shape": [1]}))(f),
                write(f"{W}/model.decoder._extra_state/0", trap)(f),
            ),
            None,
        ),
        "a pickle as metadata.json": (write(f"{W}/metadata.json", trap), None),
        "an array of objects beside": (write(f"{W}/index.npy", evil_array(command)), None),
        "pickled weights beside": (write("model_weights.ckpt", trap), None),
        "pickled weights alone": (replace(W, lambda p: write("model_weights.ckpt", trap)(p.parent)), "model_weights.ckpt"),
        "a pickle as a chunk": (write(f"{EMBEDDING}/0.0", trap), f"{EMBEDDING}/0.0"),
        "a pickle as a header": (write(header, trap), header),
        "dtype of objects": (edit(header, dtype="|O"), header),
        "dtype of records": (edit(header, dtype=[["a", "|O"]]), header),
        "a codec that unpickles": (edit(header, filters=[{"id": "pickle"}]), header),
        "a compressor": (edit(header, compressor={"id": "blosc", "cname": "lz4"}), header),
        "10^15 elements": (edit(header, shape=[10**15, 48, 16], chunks=[10**15, 48, 16]), header),
        "10^15 chunks": (edit(header, shape=[2, 10**8, 10**7], chunks=[1, 1, 1]), header),
        "a million layers": (edit(header, shape=[10**6, 48, 16], chunks=[10**6, 48, 16]), header),
        "negative sizes": (edit(header, shape=[2, -48, 16]), header),
        "sizes that are no numbers": (edit(header, chunks=["__import__('os')", 1, 1]), header),
        "a header of brackets": (write(header, "[" * 60_000), header),
        "a header with a huge number": (write(header, '{"zarr_format": ' + "9" * 60_000 + "}"), header),
        "a header that is too long": (write(header, " " * (1 << 17)), header),
        "a tag that calls": (write(config, f"a: {tag}/apply:os.system ['{command}']"), config),
        "a tag that makes": (write(config, f"a: {tag}/new:os.system ['{command}']"), config),
        "a tag that names": (write(config, "a: !!python/name:os.system"), config),
        "a tag that imports": (write(config, "a: !!python/module:antigravity"), config),
        "a tag of ours": (append(config, "extra: !Anything {a: 1}"), config),
        "_target_": (append(config, f"optim: {{_target_: os.system, command: '{command}'}}"), None),
        "an interpolation": (append(config, "hidden_size: ${oc.env:HOME}"), config),
        "aliases that unfold": (append(config, unfold + "normalization: *a9"), config),
        "merges that unfold": (append(config, merge), config),
        "an alias of itself": (append(config, "loop: &a [*a]"), config),
        "a config of brackets": (write(config, "[" * 100_000), config),
        "a config that is too long": (write(config, "a: 1\n" * 200_000), config),
        "a number of 100,000 digits": (append(config, "num_layers: " + "9" * 100_000), config),
        "a day that is none": (append(config, "when: 2001-99-99"), config),
        "no heads": (append(config, "num_attention_heads: 0"), config),
        "half a layer": (append(config, "num_layers: 2.5"), config),
        "10^12 layers": (append(config, "num_layers: 1000000000000"), config),
        "infinitely wide": (append(config, "hidden_size: .inf"), config),
        "a config that is a pickle": (write(config, trap), config),
        "a tokenizer elsewhere": (append(config, "tokenizer: {model: 'nemo:../../../../../etc/passwd'}"), None),
        "an absolute tokenizer": (append(config, "tokenizer: {model: /etc/passwd, tokenizer_model: /etc/hosts}"), None),
        "a tokenizer that is a pickle": (write(model, trap), model),
        "a tokenizer cut in the middle": (write(model, TOKENIZER.read_bytes()[:3000]), model),
        "a tokenizer of zeros": (write(model, bytes(5000)), model),
        "an empty tokenizer": (write(model, b""), model),
        "a tokenizer without markers": (
            lambda f: write(model, TOKENIZER.read_bytes().replace(b"<extra_id_", b"<extra_ix_"))(f), model,
        ),
        "a tokenizer of 1 GB": (sparse(model, 1 << 30), model),
        "a config from outside": (link(config, outside / config), config),
        "a tokenizer from outside": (link(model, "/etc/hostname"), model),
        "a chunk from outside": (link(f"{EMBEDDING}/0.0", outside / "0.0"), f"{EMBEDDING}/0.0"),
        "an array from outside": (link(EMBEDDING, outside), EMBEDDING.split("/")[1]),
        "all weights from outside": (link(W, "/etc"), W),
        "a chunk that is a device": (link(f"{EMBEDDING}/0.0", "/dev/zero"), f"{EMBEDDING}/0.0"),
        "a config that never ends": (link(config, "/dev/zero"), config),
        "a config that is a FIFO": (replace(config, os.mkfifo), config),
        "a chunk that is a FIFO": (replace(f"{QKV}/0.0.0", os.mkfifo), f"{QKV}/0.0.0"),
        "a tokenizer that is a FIFO": (replace(model, os.mkfifo), model),
        "a link to itself": (link(f"{FC1}/0.0.0", "0.0.0"), f"{FC1}/0.0.0"),
        "a folder as a chunk": (replace(f"{FC1}/0.0.0", os.mkdir), f"{FC1}/0.0.0"),
        "sums of files outside": (write("SHA256SUMS", "0" * 64 + "  ../../../etc/passwd\n"), "SHA256SUMS"),
        "sums that are a pickle": (write("SHA256SUMS", trap), "SHA256SUMS"),
        "code beside": (write("modeling_nemotron.py", f"import os; os.system({command!r})"), None),
    }  # fmt: skip
    return cases


def safetensors(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def change_header(make: Callable[[dict], object]) -> Change:
    """The header of a safetensors file after a change; the tensors' bytes stay."""

    def change(folder: Path) -> None:
        whole = (folder / SAFE).read_bytes()
        length = struct.unpack("<Q", whole[:8])[0]
        header = json.loads(whole[8 : 8 + length])
        changed = make(header)
        text = json.dumps(header).encode() if changed is None or not isinstance(changed, bytes) else changed
        (folder / SAFE).write_bytes(safetensors(text, data=whole[8 + length :]))

    return change


def hugging_face(tmp: Path, command: str) -> dict[str, tuple[Change, str | None]]:
    """Of Hugging Face's layout."""
    trap = pickle.dumps(Runs(command), 0)
    code = f"import os; os.system({command!r})"
    up, embed = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"
    auto = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}

    def twice(header: dict) -> bytes:
        text = json.dumps(header)
        return (text[:-1] + f', "{embed}": ' + json.dumps(header[embed]) + "}").encode()

    def many(header: dict) -> bytes:
        flood = ", ".join(f'"n{number}": 0' for number in range(300_000))
        return ("{" + flood + ', "n0": 0}').encode()

    def index(weight_map: object) -> Change:
        return write("model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": weight_map}))

    def offsets(name: str, begin: int, end: int) -> Change:
        return change_header(lambda header: header[name].update(data_offsets=[begin, end]))

    def both(*changes: Change) -> Change:
        return lambda folder: [change(folder) for change in changes]

    gone = replace(SAFE, lambda path: None)
    return {
        "pickled weights beside": (write("pytorch_model.bin", trap), None),
        "pickled weights alone": (both(gone, write("pytorch_model.bin", trap)), "pytorch_model.bin"),
        "weights that are a pickle": (write(SAFE, trap), SAFE),
        "code beside": (
            both(edit("config.json", trust_remote_code=True), write("modeling_nemotron.py", code)), None,
        ),
        "auto_map and its code": (
            both(edit("config.json", auto_map=auto), write("modeling_evil.py", code)), "auto_map",
        ),
        "a tokenizer's auto_map and its code": (
            both(
                edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.T", None]}),
                write("tokenization_evil.py", code),
            ),
            None,
        ),
        "an adapter and a generator with code": (
            both(write("custom_generate/generate.py", code), write("adapter_config.json", '{"auto_mapping": "x"}')), None,
        ),
        "a template that escapes": (
            write("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"), None,
        ),
        "a header of 2^63 bytes": (write(SAFE, safetensors(b"{}", 1 << 63)), SAFE),
        "a header that claims more than there is": (write(SAFE, safetensors(b"{}", 1 << 20)), SAFE),
        "a header that is no JSON": (write(SAFE, safetensors(b"hello")), SAFE),
        "a header of brackets": (write(SAFE, safetensors(b"[" * 500_000)), SAFE),
        "a header with a number that never ends": (write(SAFE, safetensors(b'{"a": ' + b"9" * 500_000 + b"}")), SAFE),
        "an empty file": (write(SAFE, b""), SAFE),
        "tensors that overlap": (
            change_header(lambda header: header[up].update(data_offsets=[0, 2 * 24 * 16])), SAFE,
        ),
        "tensors that leave holes": (change_header(lambda header: header.pop(up) and None), SAFE),
        "a tensor beyond the end": (offsets(embed, 0, 1 << 50), SAFE),
        "a tensor that ends before it begins": (offsets(embed, 100, 0), SAFE),
        "negative offsets": (offsets(embed, -12288, 0), SAFE),
        "a name that stands twice": (change_header(twice), SAFE),
        "300,000 names, one twice": (change_header(many), SAFE),
        "a shape that overflows": (change_header(lambda header: header[embed].update(shape=[1 << 32, 1 << 32])), SAFE),
        "a shape that is text": (change_header(lambda header: header[embed].update(shape="ab")), SAFE),
        "a dtype of objects": (change_header(lambda header: header[embed].update(dtype="O")), SAFE),
        "an unknown tensor": (change_header(lambda header: header.update(evil=header.pop(up))), up),
        "weights that are a FIFO": (replace(SAFE, os.mkfifo), SAFE),
        "weights that are a device": (link(SAFE, "/dev/zero"), SAFE),
        "weights from outside": (link(SAFE, "/etc/passwd"), SAFE),
        "an index that leads out": (index({embed: "../../outside/0.0"}), "../../outside/0.0"),
        "an index that is absolute": (index({embed: "/etc/passwd"}), "/etc/passwd"),
        "an index of nonsense": (index([1, 2, 3]), "index.json"),
        "an index of brackets": (write("model.safetensors.index.json", "[" * 100_000), "index.json"),
        "a config of brackets": (write("config.json", '{"a":' * 50_000), "config.json"),
        "a config with a number that never ends": (write("config.json", '{"a": ' + "9" * 100_000 + "}"), "config.json"),
        "a config with NaN": (edit("config.json", hidden_size=float("nan")), "config.json"),
        "a width of 10^30": (edit("config.json", hidden_size=10**30), "config.json"),
        "a config that is a FIFO": (replace("config.json", os.mkfifo), "config.json"),
        "a config from outside": (link("config.json", "/etc/hostname"), "config.json"),
        "a tokenizer from outside": (link("tokenizer.model", "/etc/passwd"), "tokenizer.model"),
    }  # fmt: skip


def _whole_tars(good: dict[str, Path], tmp: Path, command: str) -> list[Case]:
    """Archives of which more is wrong than a member."""
    trap = pickle.dumps(Runs(command), 0)
    folder = tmp / "whole-tars"
    folder.mkdir()
    contents = {
        "pickled weights": (raw_member(b"./model_config.yaml", b"a: 1") + raw_member(b"./model_weights.ckpt", trap) + END,
                            "model_weights.ckpt"),
        "a bomb, compressed": (b"\x1f\x8b" + bytes(1000), "bomb"),
        "not a tar": (trap, "not-a-tar"),
        "code behind the end": (good["nemo"].read_bytes() + raw_member(b"model_config.yaml", trap) + END, "behind"),
    }  # fmt: skip
    made = []
    for name, (content, who) in contents.items():
        path = folder / f"{name.replace(' ', '-').replace(',', '')}.nemo"
        path.write_bytes(content)
        made.append(Case(f"nemo: {name}", path, who))
    huge = folder / "a-hole.nemo"
    huge.write_bytes(good["nemo"].read_bytes())
    os.truncate(huge, 1 << 42)
    return [*made, Case("nemo: 4 TB of nothing", huge, "a-hole")]


def opened(path: Path) -> str:
    """All that this package does with a checkpoint before and while it reads it; what was refused, else "good"."""
    refused = []

    def step(fn) -> object:  # noqa: ANN001
        try:
            return fn()
        except CheckpointError as error:
            refused.append(str(error))
            return None

    folder = step(lambda: ModelFolder.open(path))
    if folder is not None and step(lambda: folder.contents) is not None:
        step(lambda: survey(folder))
        step(lambda: Tokenizer(folder.tokenizer, folder.contents.files.path(folder.contents.tokenizer)))
        step(lambda: folder.digest)
        step(lambda: read_bits(path))
    refused += step(lambda: verify(str(path), Console(io.StringIO()), threads=1)) or []
    return "good" if not refused else "refused: " + " | ".join(refused)


def look(path: Path) -> Seen:
    return watched(lambda: opened(path), [path, resources.root()])


def wrong_with(case: Case, seen: Seen) -> str | None:
    if seen.violations:
        return f"did what it must not: {seen.violations}"
    if case.names is None:
        return None if seen.outcome == "good" else f"was to be good, but {seen.outcome}"
    if not seen.outcome.startswith("refused: "):
        return f"was to be refused, but {seen.outcome[:300]}"
    if case.names not in seen.outcome:
        return f"the refusal does not name {case.names}: {seen.outcome}"
    # CPU time, for other work on this machine is not the checkpoint's fault; a hang is caught by the wall clock.
    return None if seen.cpu_s < LIMIT_S else f"took {seen.cpu_s:.1f} s"
