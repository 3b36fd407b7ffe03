"""Released folders: same bytes back at every topology, only a rank's own chunks, and no quiet mistakes."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from folders import make_folder, make_tokenizer, small_shape
from ranks import run_ranks

from nemo_sdg.checkpoints import save
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import fill
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.nemotron import build, transformer_config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("released")
    make_tokenizer(root / "t.model")
    make_folder(root / "policy", small_shape(), root / "t.model")
    make_folder(root / "reward", small_shape(), root / "t.model", reward=True)
    return root


def loaded(mesh, folder, reward=False, seed=None, dtype=torch.float32):
    shape = small_shape()
    config = transformer_config(shape, dtype=dtype, tp=mesh.tp, pp=mesh.pp)
    model = build(config, shape, pre_process=mesh.first_stage, post_process=mesh.last_stage, reward=reward)
    return model, fill(model, ModelFolder.open(folder), mesh, fresh_head_seed=seed)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def load_and_save(mesh, folder, out, reward):
    model, _ = loaded(mesh, folder, reward)
    save.save(model, out, small_shape(), ModelFolder.open(folder).tokenizer, mesh)


@pytest.mark.parametrize("reward", [False, True], ids=["policy", "reward"])
def test_written_at_one_topology_and_read_at_another(root, tmp_path, reward):
    source = root / ("reward" if reward else "policy")
    run_ranks(load_and_save, source, tmp_path / "a", reward, tp=2, pp=2)
    run_ranks(load_and_save, tmp_path / "a", tmp_path / "b", reward, pp=2, dp=2)
    run_ranks(load_and_save, tmp_path / "b", tmp_path / "c", reward)
    assert contents(tmp_path / "c") == contents(source)
    qkv = ModelFolder.open(tmp_path / "a").path / "model_weights/model.decoder.layers.self_attention.linear_qkv.weight"
    assert sorted(p.name for p in qkv.iterdir() if p.name != ".zarray") == [
        f"{layer}.{t}.0" for layer in range(4) for t in range(2)
    ]


def test_bytes_and_files_of_each_rank(root, tmp_path):
    """From a folder with the chunk grid of TP2, each of four ranks opens its own chunks and reads its own bytes."""
    run_ranks(load_and_save, root / "policy", tmp_path / "tp2", False, tp=2)

    def read(mesh):
        model, reading = loaded(mesh, tmp_path / "tp2")
        names = sorted(str(file.relative_to(tmp_path / "tp2/model_weights")) for file in reading.files)
        return reading.num_bytes, names, 2 * sum(p.numel() for p in model.parameters())

    files = []
    for num_bytes, names, expected in run_ranks(read, tp=2, pp=2):
        assert num_bytes == expected
        files += [name for name in names if "layer_norm" not in name and "layernorm" not in name]
    chunks = [p for p in (tmp_path / "tp2/model_weights").rglob("*") if p.is_file() and p.name[0].isdigit()]
    sharded = [f"{p.parent.name}/{p.name}" for p in chunks if "norm" not in p.parent.name]
    assert sorted(files) == sorted(sharded), "a chunk was opened by two ranks or by none"


@pytest.mark.parametrize("dtype", ["<f4", "bfloat16"])
@pytest.mark.parametrize("grid", [(1, 10, 7), (3, 64, 5), (4, 128, 64)])
def test_any_chunk_grid_and_dtype(root, tmp_path, dtype, grid):
    folder = tmp_path / "regridded"
    shutil.copytree(root / "policy", folder)
    key = "model.decoder.layers.mlp.linear_fc2.weight"
    truth = np.stack([chunk for chunk in _fc2(root / "policy")])
    array = folder / "model_weights" / key
    header = json.loads((array / ".zarray").read_text()) | {"chunks": list(grid), "dtype": dtype}
    shutil.rmtree(array)
    array.mkdir()
    (array / ".zarray").write_text(json.dumps(header))
    counts = [-(-size // step) for size, step in zip(truth.shape, grid)]
    for index in np.ndindex(*counts):
        chunk = torch.zeros(grid)
        part = truth[tuple(slice(i * g, (i + 1) * g) for i, g in zip(index, grid))]
        chunk[tuple(slice(0, n) for n in part.shape)] = torch.from_numpy(part)
        raw = chunk.to({"<f4": torch.float32, "bfloat16": torch.bfloat16}[dtype])
        (array / ".".join(map(str, index))).write_bytes(raw.view(torch.uint8).numpy().tobytes())

    def fc2(mesh):
        model, _ = loaded(mesh, folder)
        return [layer.mlp.linear_fc2.weight.detach().numpy() for layer in model.decoder.layers]

    ranks = run_ranks(fc2, tp=2)
    joined = np.stack([np.concatenate(parts, axis=1) for parts in zip(*ranks)])
    np.testing.assert_array_equal(joined, truth)


def _fc2(folder):
    array = folder / "model_weights" / "model.decoder.layers.mlp.linear_fc2.weight"
    for layer in range(4):
        raw = torch.from_numpy(np.frombuffer((array / f"{layer}.0.0").read_bytes(), np.uint16).copy())
        yield raw.view(torch.bfloat16).float().reshape(64, 128).numpy()


def head(mesh, folder, seed):
    model, _ = loaded(mesh, folder, reward=True, seed=seed)
    return model.rm_head.weight.detach().numpy() if mesh.last_stage else None


def test_a_fresh_head_does_not_depend_on_the_topology(root):
    whole = run_ranks(head, root / "policy", 5)[0]
    halves = [h for h in run_ranks(head, root / "policy", 5, tp=2, pp=2) if h is not None]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole)
    assert not np.array_equal(whole, run_ranks(head, root / "policy", 6)[0]) and whole.std() > 0


def broken(source, tmp_path, change):
    folder = tmp_path / "broken"
    shutil.copytree(source, folder)
    change(folder)
    return folder


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


EMBEDDING = "model_weights/model.embedding.word_embeddings.weight"
QKV = "model_weights/model.decoder.layers.self_attention.linear_qkv.weight"
BREAKS = {
    "no config": (lambda f: (f / "model_config.yaml").unlink(), "not a checkpoint"),
    "yaml with a tag": (lambda f: (f / "model_config.yaml").write_text("a: !!python/name:os.system"), "not plain YAML"),
    "no weights": (lambda f: shutil.rmtree(f / "model_weights"), "has no weights"),
    "missing tensor": (lambda f: shutil.rmtree(f / QKV), "linear_qkv.weight"),
    "missing chunk": (lambda f: (f / QKV / "2.0.0").unlink(), "2.0.0: a chunk is missing"),
    "short chunk": (lambda f: (f / QKV / "1.0.0").write_bytes(b"\0" * 10), "found 10 bytes"),
    "other shape": (lambda f: edit(f / QKV / ".zarray", shape=[4, 192, 65]), "does not fit the model's config"),
    "object dtype": (lambda f: edit(f / QKV / ".zarray", dtype="|O"), "dtype is not supported"),
    "codec": (lambda f: edit(f / QKV / ".zarray", filters=[{"id": "pickle"}]), "filters is not supported"),
    "compressor": (lambda f: edit(f / QKV / ".zarray", compressor={"id": "blosc"}), "compressor is not supported"),
    "not json": (lambda f: (f / QKV / ".zarray").write_text("{"), "not JSON"),
    "unknown tensor": (lambda f: (f / "model_weights/model.decoder.layers.mlp.gate.weight").mkdir(), "does not have"),
    "not finite": (
        lambda f: (f / EMBEDDING / "0.0").write_bytes(b"\xff" * (f / EMBEDDING / "0.0").stat().st_size),
        "not finite",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_folders_are_refused_by_name(root, tmp_path, name):
    change, message = BREAKS[name]
    folder = broken(root / "policy", tmp_path, change)

    def refused(mesh):
        with pytest.raises(CheckpointError) as error:
            loaded(mesh, folder)
        return str(error.value)

    assert message in run_ranks(refused)[0]


def test_a_policy_is_no_reward_model(root):
    with pytest.raises(CheckpointError, match="wrong kind"):
        ModelFolder.open(root / "policy").require(reward=True)
    with pytest.raises(CheckpointError, match="wrong kind"):
        ModelFolder.open(root / "reward").require(reward=False)


def test_extra_state_and_pickles_are_never_opened(root, tmp_path):
    def add(folder):
        extra = folder / "model_weights/model.decoder.layers.mlp.linear_fc1._extra_state"
        extra.mkdir()
        # A pickle that makes a file when it is loaded.
        trap = f"cos\nsystem\n(S'touch {tmp_path / 'sprung'}'\ntR.".encode()
        (extra / "shard_0_4.pt").write_bytes(trap)
        (folder / "model_weights/common.pt").write_bytes(trap)

    folder = broken(root / "policy", tmp_path, add)
    run_ranks(lambda mesh: loaded(mesh, folder) and None)
    assert not (tmp_path / "sprung").exists()
    pickle.loads((folder / "model_weights/common.pt").read_bytes())
    assert (tmp_path / "sprung").exists(), "the trap itself does not work"
