"""Hugging Face folders: every bit through, sharded or not, both ways to write a config, and no quiet mistakes."""

from __future__ import annotations

import json
import shutil
import struct

import numpy as np
import pytest
from random_checkpoints import TOKENIZER, assert_same, little_shape, random_bits, read_bits, write_release

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.hf import writer
from nemo_sdg.checkpoints.survey import survey
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.tokenizer import Tokenizer

SHAPE = little_shape()
INDEX = "model.safetensors.index.json"


def export(source, target, shard_bytes=writer.SHARD_BYTES):
    folder = ModelFolder.open(source)
    target.mkdir()
    for unit in writer.units(folder.contents, shard_bytes=shard_bytes):
        sums = unit.write(target)
        assert sums.keys() == set(unit.files)
    for _ in range(2):  # it can be done again
        writer.finish(folder.contents, target, tokenizer=folder.tokenizer, shard_bytes=shard_bytes)
    return target


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hf")
    write_release(root / "policy", SHAPE, random_bits(SHAPE))
    bits = random_bits(SHAPE, reward=True, head_bias=True, output_layer=True)
    write_release(root / "reward", SHAPE, bits)
    export(root / "policy", root / "hf")
    export(root / "policy", root / "sharded", shard_bytes=3000)
    export(root / "reward", root / "hf-reward")
    return root


@pytest.mark.parametrize("shard_bytes", [10**9, 3000, 1])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
@pytest.mark.parametrize("reward", [False, True], ids=["policy", "reward"])
def test_every_bit_arrives_in_blocks_of_any_size(tmp_path, monkeypatch, reward, dtype, shard_bytes):
    monkeypatch.setattr(writer, "_BLOCK_BYTES", 100)
    bits = random_bits(SHAPE, dtype=dtype, reward=reward, head_bias=reward, output_layer=reward)
    write_release(tmp_path / "a", SHAPE, bits, dtype=dtype)
    export(tmp_path / "a", tmp_path / "b", shard_bytes)
    folder = ModelFolder.open(tmp_path / "b")
    survey(folder)
    assert_same(read_bits(tmp_path / "b"), bits)
    assert (folder.shape, folder.dtype, folder.is_reward, folder.contents.head_bias) == (SHAPE, dtype, reward, reward)
    assert folder.tokenizer == TOKENIZER.read_bytes()


def test_shards_are_full_and_never_larger(root):
    sizes = {file.name: file.stat().st_size for file in (root / "sharded").glob("*.safetensors")}
    assert sorted(sizes) == [f"model-{i:05d}-of-{len(sizes):05d}.safetensors" for i in range(1, len(sizes) + 1)]
    index = json.loads((root / "sharded" / INDEX).read_text())
    units = writer.units(ModelFolder.open(root / "policy").contents, shard_bytes=3000)
    assert sum(unit.num_bytes for unit in units) == index["metadata"]["total_size"] == 2 * SHAPE.num_parameters
    # The embedding and the output layer are larger than a shard and stand alone.
    large = [unit.num_bytes for unit in units if unit.num_bytes > 3000]
    assert large == [2 * 384 * SHAPE.hidden_size] * 2
    for one, two in zip(units, units[1:]):
        first = min(json_header(root / "sharded" / two.files[0]).values(), key=lambda entry: entry["data_offsets"])
        assert one.num_bytes + first["data_offsets"][1] > 3000, "the next tensor would have had room"


def test_the_library_of_safetensors_reads_what_we_write(root):
    from safetensors import safe_open

    with safe_open(root / "hf/model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert len(list(file.keys())) == 3 + 1 + SHAPE.num_layers * 10
        assert file.get_slice("model.layers.2.self_attn.k_proj.weight").get_shape() == [12, 16]
    assert struct.unpack("<Q", (root / "hf/model.safetensors").read_bytes()[:8])[0] % 8 == 0


def test_query_key_and_value_of_each_group(root, tmp_path):
    """Known numbers: with 4 heads in 2 groups of size 6, the fused rows are Q0 Q1 K0 V0 Q2 Q3 K1 V1."""
    bits = read_bits(root / "policy")["model.decoder.layers.self_attention.linear_qkv.weight"][1]
    heads = bits.reshape(8, 6, 16)
    data = (root / "hf/model.safetensors").read_bytes()
    header = json_header(root / "hf/model.safetensors")
    for name, rows in {"q": [0, 1, 4, 5], "k": [2, 6], "v": [3, 7]}.items():
        begin, end = header[f"model.layers.1.self_attn.{name}_proj.weight"]["data_offsets"]
        start = len(data) - max(entry["data_offsets"][1] for entry in header.values())
        assert data[start + begin : start + end] == heads[rows].tobytes()


def test_what_the_folder_says_about_itself(root):
    tokenizer = Tokenizer(TOKENIZER)
    config = json.loads((root / "hf/config.json").read_text())
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    assert (config["rope_theta"], config["partial_rotary_factor"], config["head_dim"]) == (10000.0, 0.5, 6)
    assert config["torch_dtype"] == config["dtype"] == "bfloat16" and config["bos_token_id"] == 2
    assert config["eos_token_id"] == [tokenizer.turn_id, tokenizer.eos_id] == [5, 3]
    generation = json.loads((root / "hf/generation_config.json").read_text())
    assert generation["eos_token_id"] == [5, 3] and generation["bos_token_id"] == 2
    assert not (root / "hf-reward/generation_config.json").exists()
    assert json.loads((root / "hf-reward/config.json").read_text())["pad_token_id"] == 5
    assert {"score.weight", "score.bias", "lm_head.weight"} <= json_header(root / "hf-reward/model.safetensors").keys()


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    write_release(tmp_path / "a", shape := little_shape(vocab_size=300), random_bits(shape))
    with pytest.raises(CheckpointError, match="384 pieces.*at most 300.*--tokenizer"):
        export(tmp_path / "a", tmp_path / "b")


def json_header(file):
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    header.pop("__metadata__")
    return header


def edit(name, **changes):
    """A change of a JSON file; a key that is given as `...` is removed."""

    def change(folder):
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return change


@pytest.mark.parametrize(
    ("changes", "percent", "base"),
    [
        ({"partial_rotary_factor": ..., "rope_theta": ...}, 0.5, 10000),
        ({"rope_parameters": ..., "partial_rotary_factor": 0.25, "rope_theta": 500}, 0.25, 500),
        ({"partial_rotary_factor": ..., "rope_theta": ..., "rope_parameters": {"rope_theta": 2e6, "partial_rotary_factor": 1}}, 1, 2000000),
        ({"partial_rotary_factor": ..., "rope_parameters": ..., "rope_percent": 0.75}, 0.75, 10000),
        ({"partial_rotary_factor": ..., "rope_parameters": ..., "rope_percentage": 0.75, "rope_theta": ...}, 0.75, 10000),
        ({"rope_parameters": None, "partial_rotary_factor": None, "rope_scaling": None, "rope_theta": None}, 0.5, 10000),
    ],
)  # fmt: skip
def test_the_rotary_embedding_in_every_place_where_configs_have_it(root, tmp_path, changes, percent, base):
    folder = broken(root / "hf", tmp_path, edit("config.json", **changes))
    shape = ModelFolder.open(folder).shape
    assert (shape.rotary_percent, shape.rotary_base) == (percent, base)


def test_defaults_of_a_config_that_leaves_things_out(root, tmp_path):
    """As transformers has them: heads of hidden/heads, as many keys as queries."""
    shape = little_shape(num_query_groups=4, kv_channels=4)
    write_release(tmp_path / "a", shape, random_bits(shape))
    left_out = ("head_dim", "num_key_value_heads", "hidden_act", "architectures", "attention_bias", "norm_eps")
    folder = broken(
        export(tmp_path / "a", tmp_path / "hf"), tmp_path, edit("config.json", **dict.fromkeys(left_out, ...))
    )
    assert ModelFolder.open(folder).shape == shape


def header(change, file="model.safetensors"):
    """A change of a safetensors header; the bytes behind it stay."""

    def rewrite(folder):
        data = (folder / file).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        text = change(json.loads(data[8 : 8 + length]))
        text = text if isinstance(text, bytes) else json.dumps(text).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return rewrite


def with_entry(name, **changes):
    return header(lambda entries: entries | {name: entries[name] | changes})


def renamed(old, new):
    return header(lambda entries: {new if name == old else name: entry for name, entry in entries.items()})


def indexed(change):
    def rewrite(folder):
        content = json.loads((folder / INDEX).read_text())
        content["weight_map"] = change(content["weight_map"])
        (folder / INDEX).write_text(json.dumps(content))

    return rewrite


def truncated(file, by=10):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-by])


def raw(text):
    return header(lambda _: text)


def long_header(file):
    """A header of 20 MB that is there, on the disk and in the file's size."""
    with open(file, "wb") as data:
        data.write(struct.pack("<Q", 20 << 20) + b"{")
        data.truncate(21 << 20)


NORM, EMBED = "model.norm.bias", "model.embed_tokens.weight"
ONE = "model-00001-of-00007.safetensors"
MOVED = {"dtype": "BF16", "shape": [16], "data_offsets": [0, 32]}
BREAKS = {
    "no config values": (edit("config.json", hidden_size=...), "hidden_size is not the size"),
    "a text as size": (edit("config.json", hidden_size="16"), "hidden_size is not the size"),
    "other architecture": (edit("config.json", architectures=["LlamaForCausalLM"]), "another architecture.*Llama"),
    "other model type": (edit("config.json", model_type="nemotron_h"), "another architecture.*nemotron_h"),
    "gated": (edit("config.json", hidden_act="silu"), "hidden_act is not Nemotron's"),
    "biases": (edit("config.json", attention_bias=True), "attention_bias is not Nemotron's"),
    "tied": (edit("config.json", tie_word_embeddings=True), "tie_word_embeddings is not Nemotron's"),
    "quantised": (edit("config.json", quantization_config={"quant_method": "fp8"}), "quantization_config is not"),
    "code": (edit("config.json", auto_map={"AutoModel": "x.Y"}), "auto_map is not Nemotron's"),
    "scaled rotary": (edit("config.json", rope_scaling={"rope_type": "linear", "factor": 2}), "rope_scaling is not"),
    "rotary with more": (edit("config.json", rope_parameters={"rope_type": "default", "factor": 2}), "rope_parameters is not"),
    "rotary of a list": (edit("config.json", rope_parameters={"rope_type": []}), "rope_parameters is not"),
    "rotary twice": (edit("config.json", partial_rotary_factor=1.0), "partial_rotary_factor 1 and rope_parameters.partial_rotary_factor 0.5"),
    "base twice": (edit("config.json", rope_theta=5.0), "two places of the config disagree.*rope_theta 5"),
    "groups": (edit("config.json", num_key_value_heads=3), "num_key_value_heads does not fit"),
    "too many layers": (edit("config.json", num_hidden_layers=1 << 20), "num_key_value_heads does not fit"),
    "not a number": (lambda f: (f / "config.json").write_text('{"norm_eps": NaN}'), "not plain JSON.*NaN"),
    "config twice": (lambda f: (f / "config.json").write_text('{"a": 1, "a": 2}'), "not plain JSON.*'a' stands there twice"),
    "deep config": (lambda f: (f / "config.json").write_text("[" * 100000), "not plain JSON"),
    "reward without head": (edit("config.json", architectures=["NemotronForSequenceClassification"]), "no score.weight"),
    "wrong layers": (edit("config.json", num_hidden_layers=2), "does not have.*model.layers.2"),
    "more layers": (edit("config.json", num_hidden_layers=4), "no model.layers.3.input_layernorm.weight"),
    "wrong width": (edit("config.json", intermediate_size=32), r"up_proj.weight does not fit config.json.*\(24, 16\).*\(32, 16\)"),
    "missing": (renamed(NORM, "model.norm.offset"), "no model.norm.bias"),
    "unknown": (lambda f: (edit("config.json", architectures=["NemotronForCausalLM"])(f), shutil.copy(f.parent / "hf-reward-weights", f / "model.safetensors")), "NemotronForCausalLM does not have.*score"),
    "dtype": (with_entry(NORM, dtype="F8_E4M3"), "dtype of model.norm.bias.*F8_E4M3"),
    "integers": (with_entry(NORM, dtype="I16"), "dtype of model.norm.bias"),
    "mixed dtypes": (with_entry("model.layers.0.self_attn.k_proj.weight", dtype="F16"), "different dtypes.*k_proj"),
    "shape": (with_entry(NORM, shape=[4, 5]), "data_offsets of model.norm.bias"),
    "transposed": (with_entry(EMBED, shape=[16, 384]), r"embed_tokens.weight does not fit config.json.*\(16, 384\)"),
    "negative": (with_entry(NORM, shape=[-16]), "shape of model.norm.bias"),
    "true": (with_entry(NORM, shape=[True, 16]), "shape of model.norm.bias in the safetensors header"),
    "backwards": (with_entry(NORM, data_offsets=[32, 0]), "data_offsets of model.norm.bias"),
    "huge": (with_entry(NORM, shape=[1 << 40, 1 << 40]), "data_offsets of model.norm.bias"),
    "extra key": (with_entry(NORM, fill=0), "the entry of model.norm.bias"),
    "overlap": (header(lambda e: e | {NORM: MOVED}), "overlaps another tensor"),
    "overlap at the end": (header(lambda e: e | {"x": {"dtype": "BF16", "shape": [1], "data_offsets": e[NORM]["data_offsets"][:1] + [e[NORM]["data_offsets"][0] + 2]}}), "overlaps another tensor"),
    "hole": (header(lambda e: {k: v for k, v in e.items() if k != NORM}), "leaves a hole before it|has not the length"),
    "cut short": (truncated("model.safetensors"), "has not the length"),
    "longer": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"x"), "has not the length"),
    "header too long": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}"), "longer than it can be"),
    "header that takes seconds": (lambda f: long_header(f / "model.safetensors"), "longer than it can be"),
    "header over the end": (lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 100) + b"{}"), "longer than it can be"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "longer than it can be"),
    "not json": (raw(b"{'a'}"), "not plain JSON"),
    "a list": (raw(b"[1]"), "not plain JSON"),
    "spaces first": (raw(b" {}"), "not plain JSON"),
    "twice": (raw(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}'), "'a' stands there twice"),
    "metadata": (header(lambda e: e | {"__metadata__": {"a": 1}}), "__metadata__"),
    "pickles": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "only pickles, which are never opened"),
    "no weights": (lambda f: shutil.copy(f / "model.safetensors", f / "a.safetensors") and (f / "model.safetensors").rename(f / "b.safetensors"), "2 .*safetensors"),
    "two sets": (lambda f: shutil.copy(f.parent / "sharded-index", f / INDEX), "two sets of weights"),
}  # fmt: skip
SHARDED = {
    "index without a map": (edit(INDEX, weight_map=...), "no weight_map"),
    "index of a list": (edit(INDEX, weight_map=[1]), "no weight_map"),
    "outside": (indexed(lambda m: m | {NORM: "../x.safetensors"}), "names no safetensors file.*model.norm.bias"),
    "absolute": (indexed(lambda m: m | {NORM: "/etc/x.safetensors"}), "names no safetensors file"),
    "hidden": (indexed(lambda m: m | {NORM: ".safetensors"}), "names no safetensors file"),
    "line end": (indexed(lambda m: m | {NORM: ONE + "\n"}), "names no safetensors file"),
    "number": (indexed(lambda m: m | {NORM: 1}), "names no safetensors file"),
    "wrong file": (indexed(lambda m: m | {NORM: ONE}), "do not belong together.*model.norm.bias in model-00001"),
    "not listed": (indexed(lambda m: {k: v for k, v in m.items() if k != "model.layers.0.mlp.up_proj.weight"}), "do not belong together.*a tensor that the index lists"),
    "listed alone": (indexed(lambda m: m | {"model.norm.scale": ONE}), "no model.norm.scale"),
    "twice": (header(lambda e: {"model.layers.0.mlp.up_proj.weight": v for v in e.values() if "shape" in v}, ONE), "do not belong together"),
    "missing file": (lambda f: (f / ONE).unlink(), f"{ONE}: a file of the weights is missing"),
    "link out": (lambda f: ((f / ONE).rename(f.parent / "out"), (f / ONE).symlink_to(f.parent / "out")), "leads out"),
    "no index": (lambda f: (f / INDEX).unlink(), "no telling which files.*7 "),
}  # fmt: skip


def broken(source, tmp_path, change):
    folder = tmp_path / "broken"
    shutil.copytree(source, folder)
    change(folder)
    return folder


@pytest.mark.parametrize("name", [*BREAKS, *(f"sharded: {name}" for name in SHARDED)])
def test_broken_folders_are_refused_by_name(root, tmp_path, name):
    shutil.copy(root / "hf-reward/model.safetensors", tmp_path / "hf-reward-weights")
    shutil.copy(root / "sharded" / INDEX, tmp_path / "sharded-index")
    sharded = name.startswith("sharded: ")
    change, message = SHARDED[name.removeprefix("sharded: ")] if sharded else BREAKS[name]
    folder = broken(root / ("sharded" if sharded else "hf"), tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        ModelFolder.open(folder).contents


def test_the_table_of_angles_in_old_exports_is_left_unread(root, tmp_path):
    def add(folder):
        data = (folder / "model.safetensors").read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        entries = json.loads(data[8 : 8 + length])
        end = len(data) - 8 - length
        for layer in range(SHAPE.num_layers):
            name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
            entries[name] = {"dtype": "F32", "shape": [3], "data_offsets": [end, end := end + 12]}
        text = json.dumps(entries).encode()
        tables = np.zeros(3 * SHAPE.num_layers, np.float32).tobytes()
        whole = struct.pack("<Q", len(text)) + text + data[8 + length :] + tables
        (folder / "model.safetensors").write_bytes(whole)

    folder = broken(root / "hf", tmp_path, add)
    assert_same(read_bits(folder), read_bits(root / "policy"))


def test_without_a_tokenizer_the_weights_can_be_read(root, tmp_path):
    folder = ModelFolder.open(broken(root / "hf", tmp_path, lambda f: (f / "tokenizer.model").unlink()))
    assert folder.contents.tokenizer is None
    with pytest.raises(CheckpointError, match="the tokenizer is missing"):
        folder.tokenizer
