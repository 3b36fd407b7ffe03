"""Names and places of Nemotron's tensors: Megatron's modules on one side, released keys on the other. No torch.

A released folder stacks the layers of a tensor on axis 0, so its keys have no layer index.
Source: NVIDIA/Megatron-LM core_v0.7.0: transformer_block.py `sharded_state_dict`, and the file trees of the
three released repositories.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemo_sdg.models.shapes import NUM_REWARD_OUTPUTS, NemotronShape


@dataclass(frozen=True)
class TensorPlace:
    """One tensor of the model as a released folder holds it."""

    key: str
    shape: tuple[int, ...]
    """Global shape; axis 0 counts the layers if `stacked`."""
    stacked: bool
    tp_axis: int | None
    """Axis that tensor parallelism cuts, without the layer axis; None is a copy on each rank."""
    stage: str
    """first, layers or last: the pipeline stages that hold it."""


_LAYER = "model.decoder.layers."


def tensor_places(shape: NemotronShape, *, reward: bool) -> dict[str, TensorPlace]:
    """Every tensor of a model by its released key; a reward model has the head in place of the output layer."""
    hidden, ffn, layers = shape.hidden_size, shape.ffn_hidden_size, shape.num_layers
    rows = [
        ("model.embedding.word_embeddings.weight", (shape.vocab_size, hidden), 0, "first"),
        (_LAYER + "self_attention.linear_qkv.weight", (shape.qkv_size, hidden), 0, "layers"),
        (_LAYER + "self_attention.linear_proj.weight", (hidden, shape.query_size), 1, "layers"),
        (_LAYER + "mlp.linear_fc1.weight", (ffn, hidden), 0, "layers"),
        (_LAYER + "mlp.linear_fc2.weight", (hidden, ffn), 1, "layers"),
    ]
    for norm in ("self_attention.linear_qkv.layer_norm_", "mlp.linear_fc1.layer_norm_"):
        rows += [(f"{_LAYER}{norm}{part}", (hidden,), None, "layers") for part in ("weight", "bias")]
    rows += [(f"model.decoder.final_layernorm.{part}", (hidden,), None, "last") for part in ("weight", "bias")]
    if reward:
        rows.append(("model.rm_head.weight", (NUM_REWARD_OUTPUTS, hidden), 1, "last"))
    else:
        rows.append(("model.output_layer.weight", (shape.vocab_size, hidden), 0, "last"))
    return {
        key: TensorPlace(key, (layers, *size) if stage == "layers" else size, stage == "layers", axis, stage)
        for key, size, axis, stage in rows
    }


_LAYER_PARAMETER = re.compile(r"^decoder\.layers\.(\d+)\.(.+)$")
_LOCAL_NORMS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


def released_key(parameter: str, first_layer: int) -> tuple[str, int | None]:
    """The released key of a module's parameter and the global index of its layer (None outside the layers).

    Args:
        parameter: name inside this rank's model, local or TransformerEngine spelling.
        first_layer: global index of this stage's layer 0.
    """
    match = _LAYER_PARAMETER.match(parameter)
    if match is None:
        return f"model.{parameter}", None
    name = match.group(2)
    for local, fused in _LOCAL_NORMS.items():
        if name.startswith(local):
            name = fused + name[len(local) :]
    return _LAYER + name, first_layer + int(match.group(1))
