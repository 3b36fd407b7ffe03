"""`context/` of a NeMo 2 checkpoint: the model, its config and its tokenizer as NeMo 2.7.3 opens them. No NeMo here.

`io.json` is the graph of fiddle configs that `nemo.lightning.io.load_context` builds; every leaf is a number, a
string, null or the name of a dtype, so nothing in it is pickled. A language model names NeMo's own `NemotronModel`.
NeMo has no reward model: such a checkpoint names the module of this package that trains one.
Layout: NVIDIA/NeMo v2.7.3 nemo/lightning/io/{mixin,pl}.py, and google/fiddle fiddle/_src/experimental/serialization.py.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

import yaml

from nemo_sdg.checkpoints.description import TOKENIZER
from nemo_sdg.models.shapes import NemotronShape

FOLDER = "context"
_TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}
_NEMOTRON = "nemo.collections.llm.gpt.model.nemotron"
_OURS = "nemo_sdg.training.model"


@dataclass(frozen=True)
class Object:
    """Something that NeMo builds: a class by name, and the arguments that it is called with."""

    module: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Reference:
    """A value by name, such as a dtype."""

    module: str
    name: str


def write_context(
    making: Path, shape: NemotronShape, *, dtype: str, reward: bool, head_bias: bool, tokenizer: bytes
) -> None:
    """Write `context/` into a checkpoint that is being made; what is there already is written again."""
    folder = making / FOLDER
    folder.mkdir(exist_ok=True)
    model = model_object(shape, dtype=dtype, reward=reward, head_bias=head_bias)
    (folder / TOKENIZER).write_bytes(tokenizer)
    (folder / "io.json").write_text(json.dumps(graph(trainer_context(model))), encoding="utf-8")
    (folder / "model.yaml").write_text(yaml.safe_dump(_plain(model), sort_keys=True), encoding="utf-8")


def model_object(shape: NemotronShape, *, dtype: str, reward: bool, head_bias: bool = False) -> Object:
    """The Lightning module: its config and its tokenizer, a file beside `io.json`."""
    config: dict[str, Any] = {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "ffn_hidden_size": shape.ffn_hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "num_query_groups": shape.num_query_groups,
        "kv_channels": shape.kv_channels,
        "seq_length": shape.seq_length,
        "vocab_size": shape.vocab_size,
        "init_method_std": shape.init_method_std,
        "rotary_percent": shape.rotary_percent,
        "rotary_base": shape.rotary_base,
        "layernorm_epsilon": shape.layernorm_epsilon,
        "normalization": "LayerNorm",
        "layernorm_zero_centered_gamma": True,
        "activation_func": Reference("nemo.collections.llm.fn.activation", "squared_relu"),
        "gated_linear_unit": False,
        "add_bias_linear": False,
        "position_embedding_type": "rope",
        "share_embeddings_and_output_weights": False,
        "params_dtype": Reference("torch", _TORCH_DTYPES[dtype]),
        "bf16": dtype == "bf16",
        "fp16": dtype == "fp16",
        # NeMo's default refuses to be built where TransformerEngine is missing; a recipe may switch it on.
        "apply_rope_fusion": False,
    }
    if reward:
        config.update(
            reward=True,
            head_bias=head_bias,
            masked_softmax_fusion=False,
            persist_layer_norm=False,
            cross_entropy_loss_fusion=False,
        )
    spec = Object(_OURS if reward else _NEMOTRON, "NemotronConfig", config)
    spm = Object(
        "nemo.collections.common.tokenizers.sentencepiece_tokenizer", "SentencePieceTokenizer",
        {"model_path": TOKENIZER},
    )  # fmt: skip
    kind = (_OURS, "NemotronModule") if reward else (_NEMOTRON, "NemotronModel")
    return Object(*kind, {"config": spec, "tokenizer": spm})


def trainer_context(model: Object) -> Object:
    """The model beside a trainer that would save it again, as NeMo's importers leave it."""
    strategy = Object(
        "nemo.lightning.pytorch.strategies.megatron_strategy", "MegatronStrategy", {"ckpt_save_optimizer": False}
    )
    trainer = Object(
        "nemo.lightning.pytorch.trainer", "Trainer", {"accelerator": "cpu", "strategy": strategy, "devices": 1}
    )
    return Object("nemo.lightning.io.pl", "TrainerContext", {"model": model, "trainer": trainer})


def graph(root: Object) -> dict[str, Any]:
    """The JSON that fiddle's `load_json` makes a tree of configs from."""
    objects: dict[str, Any] = {}
    counts: Counter[str] = Counter()

    def add(stem: str, value: dict[str, Any]) -> dict[str, Any]:
        counts[stem] += 1
        name = f"{stem}_{counts[stem]}"
        objects[name] = value
        return {"type": "ref", "key": name}

    def plain(kind: str, items: list[Any], metadata: Any) -> dict[str, Any]:
        return {"type": _named("builtins", kind), "items": items, "metadata": metadata}

    def empty_dict() -> dict[str, Any]:
        return add("dict", plain("dict", [], plain("tuple", [], None)))

    def leaf(value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, Object):
            return config(value, path)
        if isinstance(value, Reference):
            return {**_named(value.module, value.name), "paths": [path]}
        return {"type": "leaf", "value": value, "paths": [path]}

    def config(value: Object, path: str) -> dict[str, Any]:
        items = [[f"Attr(name={key!r})", leaf(entry, f"{path}.{key}")] for key, entry in value.arguments.items()]
        names = add(
            "tuple", plain("tuple", [[f"Index(index={i})", key] for i, key in enumerate(value.arguments)], None)
        )
        parts = {
            "fn_or_cls": _named(value.module, value.name),
            "argument_names": names,
            "argument_tags": empty_dict(),
            "argument_history": empty_dict(),
        }
        traverser = _named("fiddle._src.config", "BuildableTraverserMetadata")
        entries = [[f"Attr(name={key!r})", entry] for key, entry in parts.items()]
        metadata = add("metadata", {"type": traverser, "items": entries, "metadata": traverser})
        made = {"type": _named("fiddle._src.config", "Config"), "items": items, "metadata": metadata, "paths": [path]}
        return add(value.name.lower(), made)

    root_reference = config(root, "<root>")
    return {"root": root_reference, "objects": objects, "refcounts": dict.fromkeys(objects, 1), "version": "0.0.1"}


def _named(module: str, name: str) -> dict[str, str]:
    return {"type": "pyref", "module": module, "name": name}


def _plain(value: Any) -> Any:
    """The tree as NeMo's `model.yaml` shows it to people."""
    if isinstance(value, Object):
        return {"_target_": f"{value.module}.{value.name}"} | {k: _plain(v) for k, v in value.arguments.items()}
    if isinstance(value, Reference):
        return {"_target_": f"{value.module}.{value.name}", "_call_": False}
    return value
