"""convert: the bits arrive whatever happens on the way, and nothing half-finished has the final name."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from processes import forked
from random_checkpoints import TOKENIZER, assert_same, files_of, little_shape, random_bits, read_bits, write_release

from nemo_sdg import cli
from nemo_sdg.checkpoints import release_writer
from nemo_sdg.checkpoints.convert import convert
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.writing import STOP, Stopped, create
from nemo_sdg.console import Console
from nemo_sdg.errors import CheckpointError, ConfigError, StoreError, TopologyError
from nemo_sdg.models.shapes import NemotronShape

ROOT = Path(__file__).resolve().parents[2]
EMBEDDING = "model.embedding.word_embeddings.weight"
QKV = "model.decoder.layers.self_attention.linear_qkv.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    shape = little_shape()
    return write_release(tmp_path_factory.mktemp("source") / "policy", shape, random_bits(shape))


def said(source: Path | str, target: Path, to: str = "release", **settings) -> str:
    """What convert tells the user."""
    stream = io.StringIO()
    convert(str(source), target, to, Console(stream), **settings)
    return stream.getvalue()


def working(target: Path) -> Path:
    return target.with_name(f".{target.name}.converting")


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
@pytest.mark.parametrize("tp", [1, 2])
def test_same_bits_in_the_grid_that_was_asked_for(tmp_path, dtype, tp):
    shape = little_shape(vocab_size=385)  # which two ranks do not divide
    bits = random_bits(shape, dtype=dtype, reward=True, head_bias=True, output_layer=True, seed=tp)
    grid = {QKV: (2, 7, 5), EMBEDDING: (100, 16)}
    write_release(tmp_path / "a", shape, bits, dtype=dtype, grid=grid)
    said(tmp_path / "a", tmp_path / "b", tp=tp, pp=3, threads=3)
    assert_same(read_bits(tmp_path / "b"), bits)
    folder = ModelFolder.open(tmp_path / "b")
    assert (folder.shape, folder.dtype, folder.contents.saved_with) == (shape, dtype, {"tp": tp, "pp": 3})
    assert folder.tokenizer == TOKENIZER.read_bytes()
    weights = tmp_path / "b/model_weights"
    assert {p.name for p in (weights / QKV).iterdir()} == {".zarray"} | {
        f"{n}.{t}.0" for n in range(3) for t in range(tp)
    }
    rows = 385 if tp == 1 else 193
    assert json.loads((weights / EMBEDDING / ".zarray").read_text())["chunks"] == [rows, 16]
    if tp == 2:  # the row that sticks out
        assert not any((weights / EMBEDDING / "1.0").read_bytes()[192 * 16 * bits[EMBEDDING].itemsize :])
    said(tmp_path / "b", tmp_path / "c", tp=1, pp=1)
    said(tmp_path / "a", tmp_path / "d")
    assert files_of(tmp_path / "c") == files_of(tmp_path / "d")


def test_the_sums_are_those_of_sha256sum(source, tmp_path):
    said(source, tmp_path / "b")
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=tmp_path / "b", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = [line[66:] for line in (tmp_path / "b/SHA256SUMS").read_text().splitlines()]
    assert names == sorted(names) and {*names, "SHA256SUMS"} == set(files_of(tmp_path / "b"))


def test_a_chunk_larger_than_memory_for_it_goes_through_in_boxes(tmp_path, monkeypatch):
    """The embedding of 340B has chunks of 1.18 GB at TP8; here boxes of 1 kB cut rows and columns of a few kB."""
    shape = little_shape()
    bits = random_bits(shape)
    write_release(tmp_path / "a", shape, bits)
    monkeypatch.setattr(release_writer, "_BOX_BYTES", 1000)
    said(tmp_path / "a", tmp_path / "b", tp=2)
    assert_same(read_bits(tmp_path / "b"), bits)


def test_memory_stays_bounded(tmp_path):
    shape = little_shape(vocab_size=256_000, hidden_size=256, num_layers=1)
    bits = {key: np.zeros(values.shape, values.dtype) for key, values in random_bits(shape).items()}
    write_release(tmp_path / "a", shape, bits)

    del bits
    code = (
        "import sys, io, resource; from pathlib import Path; from nemo_sdg.checkpoints.convert import convert\n"
        "from nemo_sdg.checkpoints import release_writer; from nemo_sdg.console import Console\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"convert({str(tmp_path / 'a')!r}, Path({str(tmp_path / 'b')!r}), 'release', Console(io.StringIO()), threads=1)\n"
        "assert 'torch' not in sys.modules\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100, "MB, for chunks of 131 MB"


def slowly(monkeypatch, seconds: float = 0.02) -> None:
    """Each file takes a while, so that a signal can find the conversion in the middle."""
    make = release_writer._write_chunk

    def wait(*arguments):
        time.sleep(seconds)
        return make(*arguments)

    monkeypatch.setattr(release_writer, "_write_chunk", wait)


def in_a_child(fn) -> int:  # noqa: ANN001
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = fn()
        finally:
            os._exit(status)
    return pid


def ledger_lines(target: Path) -> int:
    file = working(target) / "progress.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def chunk_files(folder: Path) -> dict[str, int]:
    """The inode of each chunk."""
    weights = folder / "model_weights"
    return {str(p.relative_to(weights)): p.stat().st_ino for p in weights.glob("*/*") if p.name[0].isdigit()}


@pytest.mark.parametrize("lines", [1, 2, 9, 17, 24, "all"])
def test_killed_at_any_moment_it_continues(source, tmp_path, monkeypatch, lines):
    target, whole = tmp_path / "b", tmp_path / "whole"
    said(source, whole, tp=2)
    slowly(monkeypatch)
    if lines == "all":  # in the last steps, where the small files are written

        def stop(*_: object) -> None:
            (tmp_path / "reached").touch()
            time.sleep(60)

        monkeypatch.setattr(release_writer, "write_metadata", stop)
    pid = in_a_child(lambda: bool(said(source, target, tp=2, threads=2)) - 1)
    deadline = time.monotonic() + 30
    while not ((tmp_path / "reached").exists() if lines == "all" else ledger_lines(target) >= lines):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert not target.exists()
    finished = chunk_files(working(target) / "checkpoint")
    monkeypatch.undo()
    text = said(source, target, tp=2)
    assert files_of(target) == files_of(whole) and not working(target).exists()
    already = re.search(r"^(\d+) of 42 files were there already$", text, re.MULTILINE)
    done = int(already[1]) if already else 0
    assert done >= (42 if lines == "all" else lines - 1), text
    kept = chunk_files(target)
    assert sum(kept[name] == inode for name, inode in finished.items()) >= done, "finished files were written again"


def half_done(source: Path, target: Path, monkeypatch, tp: int = 2) -> None:
    """An attempt that stopped after half of its files."""
    make, made = release_writer._write_chunk, []

    def fail(*arguments):
        made.append(arguments)
        if len(made) > 12:
            raise RuntimeError("stop")
        return make(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(release_writer, "_write_chunk", fail)
        with pytest.raises(RuntimeError):
            said(source, target, tp=tp, threads=1)


def test_a_torn_line_of_the_ledger_costs_one_file(source, tmp_path, monkeypatch):
    half_done(source, tmp_path / "b", monkeypatch)
    ledger = working(tmp_path / "b") / "progress.jsonl"
    assert ledger_lines(tmp_path / "b") == 13
    with open(ledger, "rb+") as file:
        file.truncate(ledger.stat().st_size - 20)
    half_done(source, tmp_path / "b", monkeypatch)  # the next line must not be glued to the torn one
    assert "23 of 42 files were there already" in said(source, tmp_path / "b", tp=2)
    said(source, tmp_path / "c", tp=2)
    assert files_of(tmp_path / "b") == files_of(tmp_path / "c")


@pytest.mark.parametrize("content", [b"", b"5\n", b"[]\n{}\n", b'{"identity": 7}\n', b"\xff\n", b'{"identity": '])
def test_a_ledger_of_nonsense_is_no_ledger(source, tmp_path, monkeypatch, content):
    half_done(source, tmp_path / "b", monkeypatch)
    (working(tmp_path / "b") / "progress.jsonl").write_bytes(content)
    assert "already" not in said(source, tmp_path / "b", tp=2)
    assert_same(read_bits(tmp_path / "b"), read_bits(source))


def test_a_file_that_is_cut_short_or_unknown_is_not_trusted(source, tmp_path, monkeypatch):
    half_done(source, tmp_path / "b", monkeypatch)
    weights = working(tmp_path / "b") / "checkpoint/model_weights"
    first = sorted(p for p in weights.rglob("*") if p.is_file())[0]
    first.write_bytes(b"")
    (weights / "model.decoder.layers.mlp.linear_fc1.weight").mkdir(exist_ok=True)
    (weights / "model.decoder.layers.mlp.linear_fc1.weight/0.0.0").write_bytes(b"half")
    (working(tmp_path / "b") / "checkpoint/SHA256SUMS").write_text("stale")
    (weights / "stray").write_text("of nobody")
    assert "10 of 42 files were there already" in said(source, tmp_path / "b", tp=2)
    said(source, tmp_path / "c", tp=2)
    assert files_of(tmp_path / "b") == files_of(tmp_path / "c")


@pytest.mark.parametrize("change", ["tp", "weights", "middle", "dtype", "version"])
def test_another_source_or_setting_starts_afresh_and_says_so(source, tmp_path, monkeypatch, change):
    copy = Path(shutil.copytree(source, tmp_path / "a"))
    half_done(copy, tmp_path / "b", monkeypatch)
    tp = 2
    if change == "tp":
        tp = 1
    elif change == "weights":
        chunk = copy / "model_weights" / EMBEDDING / "0.0"
        chunk.write_bytes(bytes(2) + chunk.read_bytes()[2:])
    elif change == "middle":  # farther from both ends than the digest of a file looks
        monkeypatch.setattr("nemo_sdg.checkpoints.folder._DIGEST_ENDS", 2)
        chunk = copy / "model_weights" / EMBEDDING / "0.0"
        chunk.write_bytes(chunk.read_bytes()[:100] + bytes(2) + chunk.read_bytes()[102:])
    elif change == "dtype":
        for header in copy.rglob(".zarray"):
            header.write_text(header.read_text().replace("bfloat16", "<f2"))
    else:
        monkeypatch.setattr("nemo_sdg.checkpoints.convert.VERSION", 2)
    text = said(copy, tmp_path / "b", tp=tp)
    assert "starting afresh" in text and "already" not in text
    assert_same(read_bits(tmp_path / "b"), read_bits(copy))
    said(copy, tmp_path / "c", tp=tp)
    assert files_of(tmp_path / "b") == files_of(tmp_path / "c")


def test_another_tokenizer_costs_no_weights(source, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(source, tmp_path / "a"))
    half_done(copy, tmp_path / "b", monkeypatch)
    # An unused byte at the end: an unknown field of the protocol buffer.
    (copy / "tokenizer.model").write_bytes(TOKENIZER.read_bytes() + b"\xf8\x07\x00")
    assert "files were there already" in said(copy, tmp_path / "b", tp=2)
    said(copy, tmp_path / "c", tp=2)
    assert files_of(tmp_path / "b") == files_of(tmp_path / "c")


@pytest.mark.parametrize("to", ["hf", "nemo2"])
def test_an_attempt_at_another_format_leaves_nothing_behind(source, tmp_path, monkeypatch, to):
    half_done(source, tmp_path / "b", monkeypatch)
    assert "starting afresh" in said(source, tmp_path / "b", to)
    assert ModelFolder.open(tmp_path / "b").contents.format == to
    assert not (tmp_path / "b/model_weights").exists()
    assert cli.main(["verify", str(tmp_path / "b")]) == 0


def test_a_working_folder_that_is_not_ours_is_left_alone(source, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thing").write_text("dear")
    for make in (
        lambda: working(tmp_path / "b").symlink_to(mine),
        lambda: working(tmp_path / "b").mkdir() or (working(tmp_path / "b") / "checkpoint").symlink_to(mine),
        lambda: working(tmp_path / "b").mkdir() or (working(tmp_path / "b") / "notes").write_text("dear"),
        lambda: working(tmp_path / "b").write_text("dear"),
    ):
        make()
        with pytest.raises(StoreError, match="something else stands where"):
            said(source, tmp_path / "b")
        assert (mine / "thing").read_text() == "dear"
        subprocess.run(["rm", "-r", working(tmp_path / "b")], check=True)


def test_names_that_cannot_be_a_new_folder(source, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(source, tmp_path / "a"))
    before = files_of(copy)
    for target in (copy / "new", copy / "model_weights/new", copy):
        with pytest.raises(ConfigError, match="would lie inside the source"):
            said(copy, target)
    with pytest.raises(ConfigError, match="cannot be the name of a new folder"):
        said(copy, Path("/"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(StoreError, match="something under this name already"):
        said(copy, Path("."))
    assert files_of(copy) == before and sorted(os.listdir(tmp_path)) == ["a", "here"]


def test_a_tokenizer_that_does_not_fit_is_refused_before_any_weight(tmp_path):
    shape = little_shape(vocab_size=100)  # fewer rows than the tokenizer has pieces
    write_release(tmp_path / "a", shape, random_bits(shape))
    for to in ("release", "hf", "nemo2"):
        with pytest.raises(CheckpointError, match="more pieces than the model has rows"):
            said(tmp_path / "a", tmp_path / "b", to)
    assert os.listdir(tmp_path) == ["a"]


def test_a_thread_in_the_middle_of_a_file_gives_up(tmp_path):
    with pytest.raises(Stopped), create(tmp_path / "f") as out:
        out.write(b"a")
        STOP.set()
        try:
            out.write(b"b")
        finally:
            STOP.clear()


def test_a_topology_of_the_source_that_no_grid_has_is_not_the_users_mistake(source, tmp_path):
    copy = Path(shutil.copytree(source, tmp_path / "a"))
    config = (copy / "model_config.yaml").read_text()
    (copy / "model_config.yaml").write_text(
        re.sub("pipeline_model_parallel_size: .*", "pipeline_model_parallel_size: 3", config)
    )
    said(copy, tmp_path / "b")
    said(copy, tmp_path / "c", "hf", tp=5)  # whole tensors have no grid


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_there_is_never_touched(source, tmp_path, kind):
    target = tmp_path / "b"
    {"folder": target.mkdir, "file": target.touch, "link": lambda: target.symlink_to("nowhere")}[kind]()
    with pytest.raises(StoreError, match="something under this name already.*delete it"):
        said(source, target)
    assert os.listdir(tmp_path) == ["b"]


def test_two_at_once(source, tmp_path, monkeypatch):
    slowly(monkeypatch, 0.2)
    pid = in_a_child(lambda: bool(said(source, tmp_path / "b", threads=1)) - 1)
    while ledger_lines(tmp_path / "b") < 2:
        time.sleep(0.002)
    with pytest.raises(StoreError, match=f"in use, found process {pid} on .*wait for it"):
        said(source, tmp_path / "b")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    monkeypatch.undo()
    said(source, tmp_path / "b")
    assert_same(read_bits(tmp_path / "b"), read_bits(source))


def test_too_little_room_is_told_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 12_000_000, 12_000_000))
    with pytest.raises(StoreError, match=r"not enough room, found 0.012 GB free, expected 0.017 GB; make room"):
        said(source, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def refused_by_the_disk(source: Path, target: Path) -> str:
    with pytest.raises(StoreError) as error:
        said(source, target, tp=1)
    return str(error.value)


def test_a_file_that_the_system_refuses_to_grow(source, tmp_path):
    """A real refusal of write(2), in the middle of a conversion: no file may be longer than 5,000 bytes."""

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
        print(refused_by_the_disk(source, tmp_path / "b"))
        return 0

    done = forked(limited)
    assert "cannot be written, found File too large; make room and give the same command again" in done.stdout, done
    assert not (tmp_path / "b").exists()
    said(source, tmp_path / "b", tp=1)  # with what was whole when the disk refused, if anything was
    assert_same(read_bits(tmp_path / "b"), read_bits(source))


def test_a_disk_that_fills_up(source, tmp_path, monkeypatch):
    """On a real file system of 40 kB: the target does not exist, and the rerun continues when there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:  # the same refusal without a mount: test_a_file_that_the_system_refuses_to_grow
        pytest.skip(f"only root can mount the small disk that is to fill up: {mounted.stderr.strip()}")
    try:
        with monkeypatch.context() as patch:  # another job filled the disk after the check
            usage = namedtuple("usage", "total used free")
            patch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 10**12))
            told = refused_by_the_disk(source, disk / "b")
        assert "No space left on device; make room and give the same command again" in told
        assert not (disk / "b").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert "already" in said(source, disk / "b", tp=1)
        assert_same(read_bits(disk / "b"), read_bits(source))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_interrupted_by_the_user(source, tmp_path, monkeypatch):
    slowly(monkeypatch, 0.05)

    def interrupt() -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, 0.4)
        return cli.main(["convert", str(source), str(tmp_path / "b"), "--to", "release", "--threads", "1"])

    done = forked(interrupt)
    assert done.returncode == 130 and done.stderr == "nemo-sdg: interrupted; the same command continues\n", done
    assert not (tmp_path / "b").exists()
    monkeypatch.undo()
    assert "files were there already" in said(source, tmp_path / "b")


def test_a_tokenizer_of_the_users_own(source, tmp_path):
    bare = Path(shutil.copytree(source, tmp_path / "a"))
    (bare / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match="tokenizer is missing.*--tokenizer"):
        said(bare, tmp_path / "b")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        said(bare, tmp_path / "b", tokenizer=source / "model_config.yaml")
    said(bare, tmp_path / "b", tokenizer=TOKENIZER)
    assert ModelFolder.open(tmp_path / "b").tokenizer == TOKENIZER.read_bytes()


def test_what_is_wrong_is_one_sentence(source, tmp_path, capsys):
    with pytest.raises(ConfigError, match="--to: there is no such format, found 'zip'"):
        said(source, tmp_path / "b", "zip")
    with pytest.raises(TopologyError, match="tp does not divide the model's KV groups"):
        said(source, tmp_path / "b", tp=4)
    with pytest.raises(CheckpointError, match="no such model folder"):
        said(tmp_path / "absent", tmp_path / "b")
    damaged = Path(shutil.copytree(source, tmp_path / "damaged"))
    (damaged / "model_weights" / QKV / "1.0.0").unlink()
    assert cli.main(["convert", str(damaged), str(tmp_path / "b"), "--to", "release"]) == 2
    told = capsys.readouterr().err
    assert "1.0.0: a chunk is missing" in told and told.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["damaged"]


def test_where_it_lies_and_what_comes_next(source, tmp_path, capsys):
    assert cli.main(["convert", str(source), str(tmp_path / "b"), "--to", "release", "--tp", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith(f"next: nemo-sdg verify {tmp_path / 'b'}\n") and "42 files of weights" in shown
    assert cli.main(["verify", str(tmp_path / "b")]) == 0


def test_package_paths(tmp_path):
    said("package:examples/tiny/reward", tmp_path / "b", tp=2)
    assert isinstance(ModelFolder.open(tmp_path / "b").shape, NemotronShape)
    assert ModelFolder.open(tmp_path / "b").is_reward
