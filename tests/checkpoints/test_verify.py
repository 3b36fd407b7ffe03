"""verify: a good checkpoint in any format is described in one line; each kind of damage has its own sentence."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from random_checkpoints import TOKENIZER, little_shape, random_bits, write_release

from nemo_sdg import cli
from nemo_sdg.checkpoints.convert import convert
from nemo_sdg.checkpoints.files import Member
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.verify import _exactly
from nemo_sdg.console import Console
from nemo_sdg.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
EMBEDDING = "model_weights/model.embedding.word_embeddings.weight"
FC1 = "model_weights/model.decoder.layers.mlp.linear_fc1.weight"
FORMATS = ("release", "hf", "nemo2")


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """The same reward model in three formats, with sums; `bare` has none."""
    root, shape = tmp_path_factory.mktemp("verify"), little_shape(num_layers=2)
    write_release(root / "bare", shape, random_bits(shape, reward=True, head_bias=True))
    for to in FORMATS:
        convert(str(root / "bare"), root / to, to, Console(io.StringIO()), tp=2)
    return root


def verified(capsys, folder: Path) -> tuple[int, str, str]:
    """Exit status, what was said, and what was complained about."""
    status = cli.main(["verify", str(folder)])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    assert (status == 0) == (shown.err == ""), shown.err
    return status, shown.out, shown.err


def complaint(capsys, folder: Path) -> str:
    status, _, told = verified(capsys, folder)
    assert status == 1 and told.startswith("nemo-sdg: ")
    return told


@pytest.mark.parametrize("kind", FORMATS)
def test_a_good_checkpoint(good, kind, capsys):
    status, said, _ = verified(capsys, good / kind)
    assert status == 0
    summary = said.splitlines()[-1]
    name = {"release": "released layout", "hf": "Hugging Face format", "nemo2": "NeMo 2 format"}[kind]
    shape = little_shape(num_layers=2)
    count = shape.num_parameters - shape.vocab_size * shape.hidden_size + 9 * shape.hidden_size + 9
    assert f"{name}, reward model, bf16, {count:,} parameters" in summary
    assert f"tokenizer {hashlib.sha256(TOKENIZER.read_bytes()).hexdigest()[:16]}" in summary
    assert "every byte is that of SHA256SUMS" in summary and "every value is finite" in summary
    assert ("in chunks of TP 2" in summary) == (kind == "release")
    assert ("weights/common.pt" in said) == (kind == "nemo2"), "what is never loaded is named"


def test_without_sums_it_says_what_it_cannot_know(good, capsys):
    status, said, _ = verified(capsys, good / "bare")
    assert status == 0 and "there is no SHA256SUMS: a byte that became another finite value cannot be noticed" in said
    assert "every byte" not in said.splitlines()[-1]


def flip(file: Path, at: int = -3) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def embedding(folder: Path) -> tuple[Path, int]:
    """The file that holds the last piece of the embedding, and where it begins."""
    piece = ModelFolder.open(folder).contents.tensors[EMBEDDING.split("/")[1]].by_layer[None][-1]
    return piece.file, piece.offset


@pytest.mark.parametrize("kind", FORMATS)
def test_one_bit_of_the_weights(good, tmp_path, kind, capsys):
    folder = Path(shutil.copytree(good / kind, tmp_path / "copy"))
    file, offset = embedding(folder)
    flip(file, offset + 100)
    told = complaint(capsys, folder)
    assert str(file) in told and "the content is not what it was" in told and "expected" in told and "found" in told


@pytest.mark.parametrize("kind", FORMATS)
def test_swapped_or_missing_files_of_weights(good, tmp_path, kind, capsys):
    folder = Path(shutil.copytree(good / kind, tmp_path / "copy"))
    file, _ = embedding(folder)
    if kind == "release":
        other = file.with_name("0.0")
        first, second = file.read_bytes(), other.read_bytes()
        file.write_bytes(second)
        other.write_bytes(first)
        assert complaint(capsys, folder).count("the content is not what it was") == 2
    file.unlink()
    assert file.name in complaint(capsys, folder)


DAMAGE = {
    "config": (lambda f: (f / "model_config.yaml").open("a").write("# a note\n"), "model_config.yaml: the content is not"),
    "not listed": (lambda f: (f / FC1 / "9.0.0").write_bytes(b"x"), f"{FC1}/9.0.0: the file is not listed"),
    "not there": (lambda f: (f / "model_weights/metadata.json").unlink(), "metadata.json: the file is listed in SHA256SUMS"),
    "outside": (lambda f: (f / "SHA256SUMS").open("a").write("0" * 64 + "  ../x\n"), "../x: the file is listed"),
    "a line of nonsense": (lambda f: (f / "SHA256SUMS").open("a").write("hello\n"), "line 48 is not valid, found 'hello'"),
    "listed twice": (lambda f: (f / "SHA256SUMS").open("a").write("0" * 64 + "  tokenizer.model\n"), "is not valid"),
    "tokenizer": (lambda f: (f / "tokenizer.model").write_bytes(b"hello"), "the tokenizer cannot be read"),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "the tokenizer is missing"),
    "cut short": (lambda f: (f / FC1 / "1.0.0").write_bytes(b"x"), "1.0.0: a chunk has the wrong size, found 1 bytes"),
    "header": (lambda f: (f / FC1 / ".zarray").write_text("{"), ".zarray: the array header is not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(good, tmp_path, name, capsys):
    folder = Path(shutil.copytree(good / "release", tmp_path / "copy"))
    change, message = DAMAGE[name]
    change(folder)
    assert message in complaint(capsys, folder)


def test_every_damaged_file_is_listed_up_to_twenty(good, tmp_path, capsys):
    folder = Path(shutil.copytree(good / "release", tmp_path / "copy"))
    chunks = sorted(p for p in (folder / "model_weights").glob("*/*") if p.name[0].isdigit())
    assert len(chunks) > 21
    for chunk in chunks[:3]:
        flip(chunk)
    assert complaint(capsys, folder).count("\n") == 3
    for chunk in chunks[3:21]:
        flip(chunk)
    told = complaint(capsys, folder)
    assert told.count("\n") == 21 and told.endswith("and 1 more\n")


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("layer", [None, 1])
def test_values_that_are_not_finite(tmp_path, value, layer, capsys):
    shape = little_shape()
    bits = random_bits(shape, dtype="fp32")
    key = (FC1 if layer else EMBEDDING).split("/")[1]
    bits[key].view(np.float32)[(layer, 3, 2) if layer else (200, 3)] = value
    write_release(tmp_path / "a", shape, bits, dtype="fp32", grid={key: (2, 10, 7) if layer else (100, 16)})
    chunk = f"{FC1}/0.0.0" if layer else f"{EMBEDDING}/2.0"
    inside = " in layer 1" if layer else ""
    assert f"{chunk}: {key} holds values that are not finite{inside}" in complaint(capsys, tmp_path / "a")


def test_what_sticks_out_of_a_tensor_may_be_anything(tmp_path, capsys):
    """Nothing reads the rest of an edge chunk."""
    shape = little_shape()
    write_release(tmp_path / "a", shape, random_bits(shape), grid={EMBEDDING.split("/")[1]: (100, 16)})
    edge = tmp_path / "a" / EMBEDDING / "3.0"
    edge.write_bytes(edge.read_bytes()[: 84 * 32] + b"\xff" * 16 * 32)
    assert verified(capsys, tmp_path / "a")[0] == 0


def test_a_tokenizer_with_more_pieces_than_rows(tmp_path, capsys):
    shape = little_shape(vocab_size=300)
    write_release(tmp_path / "a", shape, random_bits(shape))
    assert "more pieces than the embedding has rows, found 384, expected at most 300" in complaint(
        capsys, tmp_path / "a"
    )


def test_a_nemo_file(good, tmp_path, capsys):
    with tarfile.open(tmp_path / "x.nemo", "w:") as tar:
        tar.add(good / "release", arcname=".")
    assert verified(capsys, tmp_path / "x.nemo")[0] == 0
    data = bytearray((tmp_path / "x.nemo").read_bytes())
    at = data.find((good / "release" / EMBEDDING / "1.0").read_bytes())
    data[at + 100] ^= 1
    (tmp_path / "x.nemo").write_bytes(data)
    assert f"x.nemo/{EMBEDDING}/1.0: the content is not what it was" in complaint(capsys, tmp_path / "x.nemo")


def test_it_needs_no_torch_and_little_memory(tmp_path):
    shape = little_shape(vocab_size=256_000, hidden_size=256, num_layers=1)
    write_release(tmp_path / "a", shape, {k: np.zeros_like(v) for k, v in random_bits(shape).items()})
    code = (
        "import sys, resource; from nemo_sdg import cli\n"
        "import nemo_sdg.folder_verbs\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"assert cli.main(['verify', {str(tmp_path / 'a')!r}]) == 0\n"
        "assert 'torch' not in sys.modules\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 60, "MB, for chunks of 131 MB"


def test_a_folder_that_is_none(tmp_path, capsys):
    status, _, told = verified(capsys, tmp_path / "absent")
    assert status == 2 and "there is no such checkpoint" in told, "a word that was mistyped is no damage"
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert "not a checkpoint" in complaint(capsys, tmp_path)


def test_files_that_are_neither_listed_nor_weights_are_told_of(good, tmp_path, capsys):
    folder = Path(shutil.copytree(good / "release", tmp_path / "copy"))
    (folder / "README.md").write_text("hello")
    status, said, _ = verified(capsys, folder)
    assert status == 0 and "not listed in SHA256SUMS: README.md" in said


def test_a_hugging_face_folder_without_a_sentencepiece_model(good, tmp_path, capsys):
    folder = Path(shutil.copytree(good / "hf", tmp_path / "copy"))
    (folder / "tokenizer.model").unlink()
    (folder / "SHA256SUMS").unlink()
    status, said, _ = verified(capsys, folder)
    assert status == 0 and "converting it needs --tokenizer" in said and "no tokenizer" in said.splitlines()[-1]


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    with pytest.raises(CheckpointError, match="cut short"):
        _exactly(io.BytesIO(b"ab"), 3, Member("x", tmp_path / "x", 0, 3))
