"""NeMo 2 checkpoints against Megatron itself: what it saves is read here, what is written here it loads."""

from __future__ import annotations

import dataclasses
import json
import pickle
import queue
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from checkpoints.nemo2_folders import equal, whole, write_nemo2
from folders import make_folder, make_model, make_tokenizer, small_shape
from ranks import TOPOLOGIES, run_ranks

from nemo_sdg.checkpoints import save
from nemo_sdg.checkpoints.description import write_description
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import TORCH
from nemo_sdg.checkpoints.nemo2 import writer
from nemo_sdg.checkpoints.tensors import Contents
from nemo_sdg.errors import CheckpointError
from nemo_sdg.parallel import device

KINDS = {"language": False, "reward": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.model and the released folders language/ and reward/."""
    folder = tmp_path_factory.mktemp("nemo2")
    tokenizer = make_tokenizer(folder / "tokenizer.model")
    for name, reward in KINDS.items():
        make_folder(folder / name, small_shape(), tokenizer, reward=reward)
    return folder


def _values(contents: Contents) -> dict[tuple[str, int | None], torch.Tensor]:
    """Every tensor in fp64, whatever it is stored in."""
    return {
        (key, layer): torch.from_numpy(raw.view(np.uint8)).view(TORCH[contents.tensors[key].dtype]).double()
        for (key, layer), raw in whole(contents).items()
    }


def _save(mesh: Any, source: Path, path: Path, dtype: str, prefix: str, per_layer: bool, odd: str = "-") -> None:
    """Save a model as Megatron does it, with an optimizer's tensors and a random state beside; `odd` in fp32."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    from nemo_sdg.engine.load import load_model
    from nemo_sdg.training import cpu

    folder = ModelFolder.open(source)
    model, _ = load_model(source, mesh, dtype=dtype, reward=folder.is_reward)
    state = model.sharded_state_dict(prefix=prefix, metadata={"non_homogeneous_layers": per_layer})
    for key, part in [(key, part) for key, part in state.items() if isinstance(part, ShardedTensor)]:
        if odd in part.key:
            part = state[key] = dataclasses.replace(part, data=part.data.float(), dtype=torch.float32)
        state[f"exp_avg.{key}"] = dataclasses.replace(part, key=f"optimizer.state.exp_avg.{part.key}")
    state["rng"] = ShardedObject("rng_state", [1], (mesh.world_size,), (mesh.rank,))
    filesystem_async._results_queue = queue.Queue()
    filesystem_async.FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(cpu._write_here)
    if mesh.writer:
        (path / "weights").mkdir(parents=True)
        write_description(path, folder.shape, folder.tokenizer, reward=folder.is_reward, dtype=dtype)
    mesh.barrier()
    with device.cuda_calls_on_cpu():
        dist_checkpointing.save(state, str(path / "weights"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("topology", ["one", "tp2", "pp2", "tp2pp2"])
def test_what_megatron_saves_is_read(made: Path, tmp_path: Path, kind: str, topology: str):
    tp, pp, _ = TOPOLOGIES[topology]
    dtype = {"one": "fp64", "tp2": "bf16", "pp2": "fp32", "tp2pp2": "bf16"}[topology]
    run_ranks(_save, made / kind, tmp_path / "saved", dtype, "module.", False, tp=tp, pp=pp)
    source, found = ModelFolder.open(made / kind).contents, ModelFolder.open(tmp_path / "saved").contents
    assert (found.format, found.dtype, found.shape, found.is_reward) == ("nemo2", dtype, source.shape, KINDS[kind])
    there, here = _values(source), _values(found)
    assert there.keys() == here.keys() and all(torch.equal(there[key], here[key]) for key in there)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_layers_that_stand_alone_and_other_prefixes_are_the_same_tensors(made: Path, tmp_path: Path, prefix: str):
    run_ranks(_save, made / "language", tmp_path / "saved", "bf16", prefix, True, tp=2)
    names = _index(tmp_path / "saved").state_dict_metadata
    assert f"{prefix}decoder.layers.1.mlp.linear_fc1.weight" in names
    assert equal(ModelFolder.open(made / "language").contents, ModelFolder.open(tmp_path / "saved").contents)


def _index(folder: Path) -> Any:
    return pickle.loads((folder / "weights" / ".metadata").read_bytes())


def _rename(folder: Path, pattern: str, new: str) -> int:
    """Rename tensors in the index."""
    metadata = _index(folder)
    tensors = {re.sub(pattern, new, key): value for key, value in metadata.state_dict_metadata.items()}
    changed = len(set(tensors) - set(metadata.state_dict_metadata))
    metadata.state_dict_metadata = tensors
    metadata.storage_data = {
        type(key)(re.sub(pattern, new, key.fqn), key.offset): info for key, info in metadata.storage_data.items()
    }
    (folder / "weights" / ".metadata").write_bytes(pickle.dumps(metadata))
    return changed


def test_norms_may_have_their_local_names(made: Path, tmp_path: Path):
    folder = write_nemo2(made / "language", tmp_path / "written", tp=2)
    assert _rename(folder, r"self_attention\.linear_qkv\.layer_norm_(weight|bias)$", r"input_layernorm.\1") == 2
    assert _rename(folder, r"mlp\.linear_fc1\.layer_norm_(weight|bias)$", r"pre_mlp_layernorm.\1") == 2
    assert equal(ModelFolder.open(made / "language").contents, ModelFolder.open(folder).contents)


def test_a_tensor_under_both_of_its_names_is_refused(made: Path, tmp_path: Path):
    folder = write_nemo2(made / "language", tmp_path / "written")
    metadata = _index(folder)
    fused = "module.decoder.layers.self_attention.linear_qkv.layer_norm_bias"
    shutil.copy(folder / "weights" / "__0_0.distcp", folder / "weights" / "__1_0.distcp")
    metadata.state_dict_metadata["module.decoder.layers.input_layernorm.bias"] = metadata.state_dict_metadata[fused]
    for key, info in list(metadata.storage_data.items()):
        if key.fqn == fused:
            copy = dataclasses.replace(info, relative_path="__1_0.distcp")
            metadata.storage_data[type(key)("module.decoder.layers.input_layernorm.bias", key.offset)] = copy
    (folder / "weights" / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="stands twice in the index"):
        ModelFolder.open(folder).contents


def test_a_layer_that_is_missing_is_named(made: Path, tmp_path: Path):
    run_ranks(_save, made / "language", tmp_path / "saved", "bf16", "", True)
    metadata = _index(tmp_path / "saved")
    del metadata.state_dict_metadata["decoder.layers.2.mlp.linear_fc2.weight"]
    (tmp_path / "saved" / "weights" / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="mlp.linear_fc2.weight are not those of the config, found layer 2"):
        ModelFolder.open(tmp_path / "saved").contents


def test_layers_of_two_dtypes_are_refused(made: Path, tmp_path: Path):
    odd = "decoder.layers.1.mlp.linear_fc2"
    run_ranks(_save, made / "language", tmp_path / "saved", "bf16", "module.", True, odd)
    with pytest.raises(CheckpointError, match=r"the layers of model.decoder.layers.mlp.linear_fc2.weight differ"):
        ModelFolder.open(tmp_path / "saved").contents


def _padded(mesh: Any, path: Path, tokenizer: Path) -> None:
    shape = dataclasses.replace(small_shape(), vocab_size=512)
    save.save(make_model(mesh, shape, reward=False), path, shape, tokenizer.read_bytes(), mesh)


def test_padding_of_the_vocabulary_is_left_out(made: Path, tmp_path: Path):
    """Megatron stores 512 rows; how many of them are words, the config or the tokenizer says."""
    run_ranks(_padded, tmp_path / "padded", made / "tokenizer.model")
    folder = write_nemo2(tmp_path / "padded", tmp_path / "written", tp=2)
    every = _values(ModelFolder.open(folder).contents)
    words = ModelFolder.open(folder)
    from nemo_sdg.models.tokenizer import Tokenizer

    pieces = Tokenizer(words.tokenizer).vocab_size
    assert pieces < 512
    config = yaml.safe_load((folder / "model_config.yaml").read_text())
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config | {"vocab_size": 400}))
    assert _rows(folder) == {400}
    config.pop("vocab_size")
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config))
    assert _rows(folder) == {pieces}
    for file in ("tokenizer.model", "context/tokenizer.model"):
        (folder / file).unlink()
    assert _rows(folder) == {512}
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config | {"vocab_size": 400}))
    here = _values(ModelFolder.open(folder).contents)
    for key in here:
        assert torch.equal(here[key], every[key][: len(here[key])] if here[key].shape[:1] == (400,) else every[key])
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config | {"vocab_size": 600}))
    with pytest.raises(CheckpointError, match="smaller than the vocabulary, found 512 rows, expected 600"):
        ModelFolder.open(folder).contents


def _rows(folder: Path) -> set[int]:
    contents = ModelFolder.open(folder).contents
    keys = ("model.embedding.word_embeddings.weight", "model.output_layer.weight")
    return {contents.tensors[key].shape[0] for key in keys} | {contents.shape.vocab_size}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tp, pp", [(1, 1), (2, 2), (4, 3), (5, 1), (1, 4)])
def test_what_is_written_is_read_bit_by_bit(made: Path, tmp_path: Path, monkeypatch, kind: str, tp: int, pp: int):
    """Also where TP does not divide an axis, and with blocks and files so small that everything is cut."""
    if tp > 1:
        monkeypatch.setattr(writer, "_BLOCK_BYTES", 1500)
        monkeypatch.setattr(writer, "_FILE_BYTES", 20_000)
    folder = ModelFolder.open(write_nemo2(made / kind, tmp_path / "written", tp=tp, pp=pp))
    source = ModelFolder.open(made / kind)
    assert equal(source.contents, folder.contents) and folder.shape == source.shape
    assert folder.tokenizer == source.tokenizer and folder.contents.saved_with == {"tp": tp, "pp": pp}
    if tp == 4:
        sizes = [unit.num_bytes for unit in writer.units(source.contents, tp=tp, pp=pp)]
        assert len(sizes) > tp * pp and max(sizes) <= 20_000


def test_a_unit_says_the_hash_of_its_file_and_how_many_bytes_it_writes(made: Path, tmp_path: Path):
    import hashlib

    contents = ModelFolder.open(made / "language").contents
    (tmp_path / "weights").mkdir()
    units = writer.units(contents, tp=2, pp=2)
    assert sum(unit.num_bytes for unit in units) == 2 * contents.shape.num_parameters
    for unit in units:
        ((name, told),) = unit.write(tmp_path).items()
        assert unit.files == (name,) and told == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_finishing_twice_changes_nothing(made: Path, tmp_path: Path):
    path = write_nemo2(made / "language", tmp_path / "written", tp=2)
    first = {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
    folder = ModelFolder.open(made / "language")
    writer.finish(folder.contents, path, tokenizer=folder.tokenizer, tp=2, pp=1)
    assert first == {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
    assert not [file for file, content in first.items() if str(tmp_path).encode() in content]  # it can be moved


def _loads(mesh: Any, source: Path, written: Path) -> bool:
    """Whether Megatron gives this rank from the written folder what our loader gives it from the source."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.validation import StrictHandling

    from nemo_sdg.engine.load import load_model

    model, _ = load_model(source, mesh, dtype="bf16", reward=ModelFolder.open(source).is_reward)
    wanted = {name: value.detach().clone() for name, value in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    state = model.sharded_state_dict(prefix="module.")
    with device.cuda_calls_on_cpu():
        loaded, unread, absent = dist_checkpointing.load(
            state, str(written / "weights"), strict=StrictHandling.RETURN_ALL
        )
    assert not absent, absent
    assert not [key for key in unread if not key.split("/")[0].endswith("_extra_state")], unread
    model.load_state_dict({key.removeprefix("module."): loaded[key] for key in state})
    return all(torch.equal(value, wanted[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("topology", ["one", "tp2", "pp2", "tp2pp2"])
def test_megatron_loads_what_is_written(made: Path, tmp_path: Path, monkeypatch, kind: str, topology: str):
    monkeypatch.setattr(writer, "_BLOCK_BYTES", 1500)
    tp, pp, _ = TOPOLOGIES[topology]
    written = write_nemo2(made / kind, tmp_path / "written", tp=2, pp=1)
    assert all(run_ranks(_loads, made / kind, written, tp=tp, pp=pp))


def _without_head(folder: Path, **changes: Any) -> None:
    config = yaml.safe_load((folder / "context" / "model.yaml").read_text())
    config["config"].update(changes)
    (folder / "context" / "model.yaml").write_text(yaml.safe_dump(config))


def test_the_sizes_come_from_nemos_own_description_where_ours_is_missing(made: Path, tmp_path: Path):
    folder = write_nemo2(made / "language", tmp_path / "written", tp=2)
    (folder / "model_config.yaml").unlink()
    (folder / "tokenizer.model").unlink()
    found, source = ModelFolder.open(folder), ModelFolder.open(made / "language")
    assert found.shape == source.shape and found.contents.tokenizer == "context/tokenizer.model"
    assert found.tokenizer == source.tokenizer and equal(source.contents, found.contents)
    for change, words in (
        ({"normalization": "RMSNorm"}, "normalization is not Nemotron's"),
        ({"layernorm_zero_centered_gamma": False}, "normalization is not Nemotron's"),
        ({"activation_func": {"_target_": "torch.nn.functional.silu"}}, "activation is not Nemotron's"),
        ({"gated_linear_unit": True}, "activation is not Nemotron's"),
        ({"add_bias_linear": True}, "bias is not Nemotron's"),
        ({"num_layers": 3}, "does not fit the model's config"),
        ({"hidden_size": None}, "a size of the model is missing"),
    ):
        good = (folder / "context" / "model.yaml").read_text()
        _without_head(folder, **change)
        with pytest.raises(CheckpointError, match=words):
            ModelFolder.open(folder).contents
        (folder / "context" / "model.yaml").write_text(good)
    shutil.rmtree(folder / "context")
    with pytest.raises(CheckpointError, match="sizes of the model are missing.*put a model_config.yaml"):
        ModelFolder.open(folder).contents


@pytest.mark.parametrize("place", ["model_weights", "."])
def test_the_weights_may_lie_elsewhere(made: Path, tmp_path: Path, place: str):
    """In late NeMo 1 folders, and where only the folder of the weights was copied."""
    folder = write_nemo2(made / "language", tmp_path / "written", tp=2)
    shutil.rmtree(folder / "context")
    for file in list((folder / "weights").iterdir()):
        (folder / place).mkdir(exist_ok=True)
        file.rename(folder / place / file.name)
    (folder / "weights").rmdir()
    assert equal(ModelFolder.open(made / "language").contents, ModelFolder.open(folder).contents)


@pytest.mark.parametrize("kind", KINDS)
def test_the_context_holds_no_pickled_leaf(made: Path, tmp_path: Path, kind: str):
    context = write_nemo2(made / kind, tmp_path / "written") / "context"
    assert {file.name for file in context.iterdir()} == {"io.json", "model.yaml", "tokenizer.model"}
    graph = json.loads((context / "io.json").read_text())
    assert set(graph["refcounts"]) == set(graph["objects"]) and graph["root"]["key"] in graph["objects"]
    named = {match["name"] for match in _all_of(graph, "pyref")}
    assert ("NemotronModule" in named) == KINDS[kind] and ("NemotronModel" in named) != KINDS[kind]
    for leaf in _all_of(graph, "leaf"):
        assert isinstance(leaf["value"], (int, float, str, bool, type(None)))
        assert leaf["value"] != "io.json" and leaf["paths"]


def _all_of(node: Any, kind: str) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        own = [node] if node.get("type") == kind else []
        return own + [found for value in node.values() for found in _all_of(value, kind)]
    return [found for value in node for found in _all_of(value, kind)] if isinstance(node, list) else []
