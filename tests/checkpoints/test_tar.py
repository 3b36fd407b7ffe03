"""`.nemo` files: read where they lie, equal to their folder, and refused where tar programs would disagree."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
from pathlib import Path

import pytest
import torch
from random_checkpoints import assert_same, files_of, little_shape, random_bits, read_bits, write_release
from ranks import run_ranks
from tars import END, TRICKS, add_members, member, pack, pax, raw_member

from nemo_sdg import cli
from nemo_sdg.checkpoints.convert import convert
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import fill
from nemo_sdg.checkpoints.survey import survey
from nemo_sdg.checkpoints.tar import _MOST_MEMBERS, TarFiles
from nemo_sdg.console import Console
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.nemotron import build, transformer_config

EMBEDDING = "model_weights/model.embedding.word_embeddings.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    shape = little_shape(num_layers=4)
    return write_release(tmp_path_factory.mktemp("tar") / "policy", shape, random_bits(shape))


@pytest.mark.parametrize("layout", [".", "bare"])
@pytest.mark.parametrize(
    "kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "gnu", "pax"]
)
def test_it_is_what_its_folder_is(folder, tmp_path, kind, layout):
    packed, plain = (
        ModelFolder.open(pack(folder, tmp_path / "x.nemo", layout=layout, kind=kind)),
        ModelFolder.open(folder),
    )
    assert_same(read_bits(packed.path), read_bits(folder))
    assert (packed.shape, packed.tokenizer, packed.digest) == (plain.shape, plain.tokenizer, plain.digest)
    survey(packed)


def test_the_digest_sees_a_changed_member(folder, tmp_path):
    pack(folder, tmp_path / "x.nemo")
    before = ModelFolder.open(tmp_path / "x.nemo")
    digest, offset = before.digest, before.contents.tensors[EMBEDDING.split("/")[1]].by_layer[None][0].offset
    with open(tmp_path / "x.nemo", "rb+") as file:
        file.seek(offset)
        file.write(b"\0\1")
    assert ModelFolder.open(tmp_path / "x.nemo").digest != digest


def weights(mesh, path):  # noqa: ANN001
    folder = ModelFolder.open(path)
    config = transformer_config(folder.shape, dtype=torch.float32, tp=mesh.tp, pp=mesh.pp)
    model = build(config, folder.shape, pre_process=mesh.first_stage, post_process=mesh.last_stage)
    reading = fill(model, folder, mesh)
    return {name: value.numpy() for name, value in model.state_dict().items() if value is not None}, reading.num_bytes


def test_ranks_are_filled_from_it(folder, tmp_path):
    pack(folder, tmp_path / "x.nemo")
    for (ours, read), (theirs, expected) in zip(
        run_ranks(weights, tmp_path / "x.nemo", tp=2, pp=2), run_ranks(weights, folder, tp=2, pp=2)
    ):
        assert read == expected and ours.keys() == theirs.keys()
        assert all((ours[name] == theirs[name]).all() for name in ours)


def test_converted_and_verified(folder, tmp_path, capsys):
    pack(folder, tmp_path / "x.nemo")
    for to in ("hf", "release"):
        convert(str(tmp_path / "x.nemo"), tmp_path / to, to, Console(io.StringIO()))
        assert_same(read_bits(tmp_path / to), read_bits(folder))
    assert cli.main(["verify", str(tmp_path / "x.nemo")]) == 0
    assert "every value is finite" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "release", "x.nemo"], "something was unpacked"


@pytest.mark.parametrize("name", TRICKS)
def test_tricks_are_refused_by_name(folder, tmp_path, name):
    trick, who, why = TRICKS[name]
    pack(folder, tmp_path / "x.nemo", kind=tarfile.USTAR_FORMAT)
    add_members(tmp_path / "x.nemo", trick)
    started = time.monotonic()
    with pytest.raises(CheckpointError) as error:
        ModelFolder.open(tmp_path / "x.nemo").contents
    assert who in str(error.value) and why in str(error.value), error.value
    assert time.monotonic() - started < 2


def test_adding_members_works_and_times_and_owners_do_no_harm(folder, tmp_path):
    pack(folder, tmp_path / "x.nemo", kind=tarfile.USTAR_FORMAT)
    add_members(tmp_path / "x.nemo", pax({"mtime": "1.5", "comment": "hello"}) + raw_member(b"notes.txt", b"hello"))
    files = TarFiles(tmp_path / "x.nemo")
    assert files.find("notes.txt").read(100) == b"hello" and files.find("model_config.yaml") is not None
    assert ModelFolder.open(tmp_path / "x.nemo").contents


@pytest.mark.parametrize("cut", [1, 511, 512, 1024, 5000])
def test_cut_short(folder, tmp_path, cut):
    """Also at the border of a member: the two blocks of zeros at the end are missing then."""
    pack(folder, tmp_path / "x.nemo", kind=tarfile.USTAR_FORMAT)
    whole = (tmp_path / "x.nemo").read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512 + 1024
    (tmp_path / "x.nemo").write_bytes(whole[: end - cut])
    with pytest.raises(CheckpointError, match="end|larger than the file|no header"):
        TarFiles(tmp_path / "x.nemo")


def test_bytes_after_the_end(folder, tmp_path):
    pack(folder, tmp_path / "x.nemo")
    with open(tmp_path / "x.nemo", "ab") as file:
        file.write(raw_member(b"model_config.yaml", b"hidden") + END)
    with pytest.raises(CheckpointError, match="does not end where its end is marked"):
        TarFiles(tmp_path / "x.nemo")


def test_a_flood_of_members(tmp_path):
    one = raw_member(b"x")
    with open(tmp_path / "x.nemo", "wb") as file:
        for number in range(_MOST_MEMBERS + 2):
            name = b"%d" % number
            header = bytearray(one)
            header[: len(name)] = name
            header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
            file.write(header)
        file.write(END)
    started = time.process_time()
    with pytest.raises(CheckpointError, match="too many members"):
        TarFiles(tmp_path / "x.nemo")
    assert time.process_time() - started < 2


def test_compressed(folder, tmp_path):
    packed = pack(folder, tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.nemo").write_bytes(gzip.compress(packed, 1))
    with pytest.raises(CheckpointError, match="is compressed.*unpack it with `gunzip` first"):
        ModelFolder.open(tmp_path / "x.nemo")
    (tmp_path / "y.nemo").write_bytes(b"hello" * 1000)
    with pytest.raises(CheckpointError, match="not a tar archive, found it begins with b'hellohel'"):
        ModelFolder.open(tmp_path / "y.nemo")
    (tmp_path / "z.nemo").touch()
    with pytest.raises(CheckpointError, match="not a tar archive"):
        ModelFolder.open(tmp_path / "z.nemo")


@pytest.mark.parametrize("name", ["model_weights.ckpt", "mp_rank_00/model_weights.ckpt"])
def test_pickled_weights_are_never_opened(folder, tmp_path, name):
    with tarfile.open(tmp_path / "x.nemo", "w:") as tar:
        tar.add(folder / "model_config.yaml", arcname="./model_config.yaml")
        info, data = member(f"./{name}", b"cos\nsystem\n(S'exit 1'\ntR.")
        tar.addfile(info, io.BytesIO(data))
    with pytest.raises(CheckpointError, match="the weights are pickled.*never opened.*safetensors"):
        ModelFolder.open(tmp_path / "x.nemo").contents


def test_chunks_that_are_missing_or_of_another_size(folder, tmp_path):
    for name, (content, why) in {"less": (b"\0" * 10, "found 10 bytes"), "none": (None, "no such member")}.items():
        copy = files_of(folder)
        del copy[f"{EMBEDDING}/0.0"]
        if content:
            copy[f"{EMBEDDING}/0.0"] = content
        with tarfile.open(tmp_path / name, "w:") as tar:
            for file, data in copy.items():
                tar.addfile(member(file, data)[0], io.BytesIO(data))
        with pytest.raises(CheckpointError, match=f"{EMBEDDING}/0.0: a chunk.*{why}"):
            ModelFolder.open(tmp_path / name).contents


def test_long_names_of_ustar_and_what_gnu_keeps_in_their_place(folder, tmp_path):
    long = f"{'d' * 90}/{'f' * 60}"
    pack(folder, tmp_path / "x.nemo", kind=tarfile.USTAR_FORMAT)
    add_members(tmp_path / "x.nemo", member(long, b"hello"))
    assert TarFiles(tmp_path / "x.nemo").find(long).read(10) == b"hello"
    times = bytearray(raw_member(b"notes.txt", b"hello"))
    times[257:265] = b"ustar  \0"
    times[345:357] = b"15000000000\0"  # GNU's own format: the time of the last access
    times[148:156] = b"%06o\0 " % (sum(times[:148]) + 256 + sum(times[156:512]))
    pack(folder, tmp_path / "y.nemo", kind=tarfile.USTAR_FORMAT)
    add_members(tmp_path / "y.nemo", bytes(times))
    assert TarFiles(tmp_path / "y.nemo").find("notes.txt").read(10) == b"hello"


def test_nothing_but_the_tar_itself_is_opened(folder, tmp_path):
    files = TarFiles(pack(folder, tmp_path / "x.nemo"))
    with pytest.raises(CheckpointError, match="not a regular file"):
        files.open(folder / "model_config.yaml")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        TarFiles(tmp_path / "pipe")
