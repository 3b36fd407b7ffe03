"""`config.json` of a Hugging Face folder, in both ways that transformers has had, to `NemotronShape` and back.

Source: huggingface/transformers: src/transformers/models/nemotron/configuration_nemotron.py of versions 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.hf.plain_json import is_size, read_object
from nemo_sdg.config.selection import OUTPUTS
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.models.templates import OUTPUT_NAMES

CONFIG = "config.json"
CAUSAL, REWARD = "NemotronForCausalLM", "NemotronForSequenceClassification"
TORCH_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}
_WAY_OUT = "use a checkpoint of the Nemotron-3 / Nemotron-4 / Minitron architecture"
_ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_MOST_PROJECTIONS = 1 << 16
"""Layers times KV groups: 768 at 340B. A config that claims more would fill the memory with its list of pieces."""


def read_config(files: Files) -> dict[str, Any]:
    return read_object(files, CONFIG, "the model config", at_most=1 << 20)


def architecture_of(config: dict[str, Any], where: object) -> str | None:
    """CAUSAL or REWARD; None if the config names no architecture. Raises CheckpointError for any other."""
    kinds = config.get("architectures")
    if config.get("model_type") != "nemotron" or (kinds and kinds not in ([CAUSAL], [REWARD])):
        raise CheckpointError(
            "the model is of another architecture", where=where,
            found=f"model_type {config.get('model_type')!r:.60}, architectures {kinds!r:.80}",
            expected=f"model_type 'nemotron', architectures [{CAUSAL}] or [{REWARD}]", way_out=_WAY_OUT,
        )  # fmt: skip
    return kinds[0] if kinds else None


def shape_of(config: dict[str, Any], where: object) -> NemotronShape:
    """The sizes that a config.json describes.

    Raises:
        CheckpointError: a size is missing or no number, two places disagree, or a part is not Nemotron's.
    """
    for key, expected in (
        ("hidden_act", "relu2"), ("attention_bias", False), ("mlp_bias", False), ("tie_word_embeddings", False),
        ("quantization_config", None), ("auto_map", None),
    ):  # fmt: skip
        if config.get(key, expected) != expected:
            raise CheckpointError(
                f"{key} is not Nemotron's", where=where, found=repr(config[key])[:80],
                expected="no such key" if expected is None else repr(expected), way_out=_WAY_OUT,
            )  # fmt: skip

    def size(key: str, default: int | None = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if not is_size(value, below=1 << 24) or value == 0:
            raise CheckpointError(
                f"{key} is not the size of a model", where=where, found=repr(value)[:80], expected="a whole number",
                way_out=_WAY_OUT,
            )  # fmt: skip
        return value

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    groups = size("num_key_value_heads", heads)
    layers = size("num_hidden_layers")
    if heads % groups or layers * groups > _MOST_PROJECTIONS:
        raise CheckpointError(
            "num_key_value_heads does not fit the model", where=where,
            found=f"{groups} for {heads} heads in {layers} layers", expected="a divisor of the heads", way_out=_WAY_OUT,
        )  # fmt: skip
    percent, base = _rotary(config, where)
    return NemotronShape(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=size("intermediate_size"),
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=size("head_dim", hidden // heads if hidden % heads == 0 else None),
        vocab_size=size("vocab_size"),
        seq_length=size("max_position_embeddings", 4096),
        init_method_std=_number(config, "initializer_range", NemotronShape.init_method_std, where),
        rotary_percent=percent,
        rotary_base=base,
        layernorm_epsilon=_number(config, "norm_eps", NemotronShape.layernorm_epsilon, where),
    )


def _number(config: dict[str, Any], key: str, default: float, where: object) -> float:
    value = config.get(key)
    value = default if value is None else value
    # A whole number of more than 300 digits has no float.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise CheckpointError(
            f"{key} is not a number that a model can have", where=where, found=repr(value)[:80],
            expected="a number above 0", way_out=_WAY_OUT,
        )  # fmt: skip
    return float(value)


def _rotary(config: dict[str, Any], where: object) -> tuple[float, int]:
    """The rotated share of each head and the base of the angles, wherever the config has them.

    transformers 4 keeps both at the top, 5 in `rope_parameters`; early folders spell the share `rope_percent` or
    `rope_percentage`. Places that disagree are refused: each version would read another model.
    """
    places: list[tuple[str, dict[str, Any]]] = [("", config)]
    for key in ("rope_parameters", "rope_scaling"):
        nested = config.get(key)
        if nested is None:
            continue
        if (
            not isinstance(nested, dict)
            or set(nested) - _ROPE_KEYS
            or any(nested.get(kind, "default") != "default" for kind in ("rope_type", "type"))
        ):
            raise CheckpointError(
                f"{key} is not Nemotron's", where=where, found=repr(nested)[:120],
                expected="rope_type default, rope_theta and partial_rotary_factor alone", way_out=_WAY_OUT,
            )  # fmt: skip
        places.append((f"{key}.", nested))

    def one(names: tuple[str, ...], default: float) -> float:
        found = {
            f"{prefix}{name}": _number(table, name, default, where)
            for prefix, table in places
            for name in names
            if table.get(name) is not None
        }
        if len(set(found.values())) > 1:
            raise CheckpointError(
                "two places of the config disagree", where=where,
                found=" and ".join(f"{name} {value:g}" for name, value in found.items()), expected="one value",
                way_out="remove the wrong one",
            )  # fmt: skip
        return next(iter(found.values()), default)

    percent = one(("partial_rotary_factor", "rope_percent", "rope_percentage"), 0.5)
    base = one(("rope_theta",), 10000.0)
    if percent > 1 or base != int(base):
        raise CheckpointError(
            "the rotary embedding is not Nemotron's", where=where,
            found=f"partial_rotary_factor {percent:g}, rope_theta {base:g}",
            expected="a share of at most 1 and a whole base", way_out=_WAY_OUT,
        )  # fmt: skip
    return percent, int(base)


def make_config(
    shape: NemotronShape,
    *,
    reward: bool,
    outputs: Mapping[str, int] = OUTPUTS,
    dtype: str,
    bos_id: int | None,
    stop_ids: tuple[int, ...],
) -> dict[str, Any]:
    """`config.json` that versions 4 and 5 of transformers both read right.

    Args:
        outputs: of a reward model, by name.
        stop_ids: the token that ends a turn, then `</s>`.
    """
    config: dict[str, Any] = {
        "architectures": [REWARD if reward else CAUSAL],
        "model_type": "nemotron",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_query_groups,
        "head_dim": shape.kv_channels,
        "hidden_act": "relu2",
        "max_position_embeddings": shape.seq_length,
        "initializer_range": shape.init_method_std,
        "norm_eps": shape.layernorm_epsilon,
        "rope_theta": float(shape.rotary_base),
        "partial_rotary_factor": shape.rotary_percent,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(shape.rotary_base),
            "partial_rotary_factor": shape.rotary_percent,
        },
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        "torch_dtype": TORCH_NAMES[dtype],
        "dtype": TORCH_NAMES[dtype],
        "bos_token_id": bos_id,
        "eos_token_id": list(stop_ids),
    }
    if reward:
        config["problem_type"] = "regression"
        names = OUTPUT_NAMES
        if dict(outputs) != OUTPUTS:
            config["reward_outputs"] = dict(outputs)
            taken = {slot: name for name, slot in outputs.items()}
            names = tuple(taken.get(slot, f"unused_{slot}") for slot in range(len(OUTPUT_NAMES)))
        config["num_labels"] = len(names)
        config["id2label"] = {str(slot): name for slot, name in enumerate(names)}
        config["label2id"] = {name: slot for slot, name in enumerate(names)}
        # The score is read at the last token that is not this one, and padding comes after `<extra_id_2>`.
        # Not set for a language model: transformers would freeze the embedding of the end of turn.
        config["pad_token_id"] = stop_ids[0]
    return config


def make_generation_config(*, bos_id: int | None, stop_ids: tuple[int, ...]) -> dict[str, Any]:
    """`generation_config.json`: what transformers and vLLM stop at; sampling stays the caller's."""
    return {
        "bos_token_id": bos_id, "eos_token_id": list(stop_ids), "pad_token_id": stop_ids[0], "do_sample": False
    }  # fmt: skip
