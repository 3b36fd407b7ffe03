"""The sizes, the topology and the tokenizer of a NeMo 2 checkpoint, as plain data."""

from __future__ import annotations

from typing import Any

from nemo_sdg.checkpoints.description import CONFIG, read_config, read_tokenizer, read_yaml, tokenizer_name
from nemo_sdg.checkpoints.files import Files
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.shapes import NemotronShape

MODEL_YAML = "context/model.yaml"
_WAY_OUT = f"put a {CONFIG} with the sizes of the model beside weights/ (NeMo's names, as in the released folders)"
_TOKENIZER_BYTES = 64 << 20
_MAX_ENTRIES = 4096
_MAX_DEPTH = 8


def read_sizes(files: Files, folder: str, rows: int) -> tuple[NemotronShape, dict[str, int], str | None]:
    """The shape of the model, tp and pp that it was saved with, and the tokenizer's name.

    From our own `model_config.yaml`, or from NeMo's `context/model.yaml`.

    Args:
        rows: of the stored embedding; Megatron pads it to a multiple that TP divides.
    Raises:
        CheckpointError: neither is there, or it describes another architecture.
    """
    ours = files.find(CONFIG) is not None
    if not ours and files.find(MODEL_YAML) is None:
        raise CheckpointError(
            "the sizes of the model are missing", where=files.where, found=f"neither {CONFIG} nor {MODEL_YAML}",
            way_out=_WAY_OUT,
        )  # fmt: skip
    if ours:
        config, where, tokenizer = read_config(files), files.path(CONFIG), None
        tokenizer = tokenizer_name(files, config)
    else:
        config, where, tokenizer = _from_nemo(files), files.path(MODEL_YAML), None
    tokenizer = tokenizer or find_tokenizer(files)
    vocabulary = _vocabulary(files, config, tokenizer, rows)
    if vocabulary > rows:
        raise CheckpointError(
            "the embedding is smaller than the vocabulary", where=where, found=f"{rows} rows", expected=vocabulary,
            way_out="check that the tokenizer and the config belong to these weights",
        )  # fmt: skip
    shape = NemotronShape.from_model_config(config, where, vocabulary)
    saved_with = {
        short: config[key]
        for short, key in (("tp", "tensor_model_parallel_size"), ("pp", "pipeline_model_parallel_size"))
        if isinstance(config.get(key), int)
    }
    return shape, saved_with, tokenizer


def _vocabulary(files: Files, config: dict[str, Any], tokenizer: str | None, rows: int) -> int:
    """What the config says; else the pieces of the tokenizer; else the stored rows, padding and all."""
    said = config.get("vocab_size")
    if isinstance(said, int) and not isinstance(said, bool) and said > 0:
        return said
    if tokenizer is not None:
        from nemo_sdg.models.tokenizer import Tokenizer

        return Tokenizer(read_tokenizer(files, tokenizer), files.path(tokenizer)).vocab_size
    return rows


def _from_nemo(files: Files) -> dict[str, Any]:
    """`config` of NeMo's model.yaml in the names of a released model_config.yaml. Only plain values are taken."""
    where = files.path(MODEL_YAML)
    try:
        config = read_yaml(files, MODEL_YAML).get("config")
    except CheckpointError as error:
        raise CheckpointError(error.what, where=where, found=error.found, way_out=_WAY_OUT) from error
    if not isinstance(config, dict):
        raise CheckpointError("the model config is not a mapping", where=where, found="no config", way_out=_WAY_OUT)
    config = dict(config)
    if config.get("normalization") == "LayerNorm" and config.get("layernorm_zero_centered_gamma") is True:
        config["normalization"] = "layernorm1p"
    activation = config.get("activation_func")
    target = activation.get("_target_") if isinstance(activation, dict) else activation
    if isinstance(target, str):
        squared = target.rpartition(".")[2] == "squared_relu" and config.get("gated_linear_unit") is not True
        config["activation"] = "squared-relu" if squared else target
    config["bias"] = config.get("add_bias_linear")
    if config.get("kv_channels") is None:
        config.pop("kv_channels", None)
    return config


def find_tokenizer(files: Files) -> str | None:
    """The SentencePiece file beside the weights or among the artifacts of `context/`; None unless it is one."""
    found: list[str] = []
    entries = 0
    todo = [("", 0)]
    while todo:
        folder, depth = todo.pop()
        for name, is_folder in files.entries(folder.rstrip("/")).items():
            entries += 1
            if is_folder and depth < _MAX_DEPTH and (folder or name == "context"):
                todo.append((f"{folder}{name}/", depth + 1))
            elif not is_folder and name.endswith(".model"):
                found.append(folder + name)
        if entries > _MAX_ENTRIES:
            return None
    members = [member for member in map(files.find, found) if member is not None]
    if not members or len({member.read(_TOKENIZER_BYTES) for member in members}) != 1:
        return None
    return members[0].name
