"""Names and places of Nemotron's tensors: Megatron's modules on one side, released keys on the other. No torch.

Released keys are this package's common language: every format is read and written by them. A released folder
stacks the layers of a tensor on axis 0, so its keys have no layer index.
Source: NVIDIA/Megatron-LM core_v0.7.0: transformer_block.py `sharded_state_dict`, and the file trees of the
three released repositories.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional, Tuple

from nemo_sdg.models.shapes import NUM_REWARD_OUTPUTS, NemotronShape

EMBEDDING = "model.embedding.word_embeddings.weight"
OUTPUT_LAYER = "model.output_layer.weight"
HEAD = "model.rm_head.weight"
HEAD_BIAS = "model.rm_head.bias"

Region = Tuple[slice, ...]
"""A box of a tensor, one slice with start and stop per axis."""


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

    @property
    def layers(self) -> tuple[Optional[int], ...]:
        """The layers that it is stacked of; `(None,)` outside the layers."""
        return tuple(range(self.shape[0])) if self.stacked else (None,)


LAYERS = "model.decoder.layers."


def architecture(shape: NemotronShape) -> dict[str, TensorPlace]:
    """Every tensor that any checkpoint of this architecture can hold, by its released key."""
    hidden, ffn, layers = shape.hidden_size, shape.ffn_hidden_size, shape.num_layers
    rows = [
        (EMBEDDING, (shape.vocab_size, hidden), 0, "first"),
        (LAYERS + "self_attention.linear_qkv.weight", (shape.qkv_size, hidden), 0, "layers"),
        (LAYERS + "self_attention.linear_proj.weight", (hidden, shape.query_size), 1, "layers"),
        (LAYERS + "mlp.linear_fc1.weight", (ffn, hidden), 0, "layers"),
        (LAYERS + "mlp.linear_fc2.weight", (hidden, ffn), 1, "layers"),
    ]
    for norm in ("self_attention.linear_qkv.layer_norm_", "mlp.linear_fc1.layer_norm_"):
        rows += [(f"{LAYERS}{norm}{part}", (hidden,), None, "layers") for part in ("weight", "bias")]
    rows += [(f"model.decoder.final_layernorm.{part}", (hidden,), None, "last") for part in ("weight", "bias")]
    rows += [
        (OUTPUT_LAYER, (shape.vocab_size, hidden), 0, "last"),
        (HEAD, (NUM_REWARD_OUTPUTS, hidden), 1, "last"),
        (HEAD_BIAS, (NUM_REWARD_OUTPUTS,), None, "last"),
    ]
    return {
        key: TensorPlace(key, (layers, *size) if stage == "layers" else size, stage == "layers", axis, stage)
        for key, size, axis, stage in rows
    }


def tensor_places(shape: NemotronShape, *, reward: bool, head_bias: bool = False) -> dict[str, TensorPlace]:
    """Every tensor of a model by its released key; a reward model has the head in place of the output layer.

    Args:
        head_bias: the reward head has a bias (NVIDIA/NeMo-Aligner's default; the released Reward may not).
    """
    places = architecture(shape)
    for key in (OUTPUT_LAYER,) if reward else (HEAD, HEAD_BIAS):
        del places[key]
    if reward and not head_bias:
        del places[HEAD_BIAS]
    return places


def adapter_places(shape: NemotronShape, layer: int, target: str, rank: int) -> tuple[TensorPlace, TensorPlace]:
    """A [rank, in] and B [out, rank] of a low-rank adapter (`models.lora`); no format of whole models has them.

    Args:
        layer: global index.
        target: the linear that it stands beside, by Megatron's name.
    """
    block = "self_attention" if target in ("linear_qkv", "linear_proj") else "mlp"
    linear = architecture(shape)[f"{LAYERS}{block}.{target}.weight"]
    outputs, inputs = linear.shape[1:]
    column = linear.tp_axis == 0
    key = f"adapters.layers.{layer}.{target}."
    return (
        TensorPlace(f"{key}a_RI", (rank, inputs), False, None if column else 1, "layers"),
        TensorPlace(f"{key}b_OR", (outputs, rank), False, 0 if column else None, "layers"),
    )


def region(place: TensorPlace, layer: int | None, tp: int, tp_rank: int) -> Region:
    """The box of the global tensor that a rank holds; a layer of a stacked tensor is one index of axis 0.

    Where TP does not divide the axis (a vocabulary), shards are as long as the first and the last ones end
    early or are empty: the model pads them.
    """
    sizes = place.shape[1:] if place.stacked else place.shape
    slices = [slice(0, size) for size in sizes]
    if place.tp_axis is not None:
        size = sizes[place.tp_axis]
        shard = -(-size // tp)
        slices[place.tp_axis] = slice(min(size, tp_rank * shard), min(size, (tp_rank + 1) * shard))
    return (slice(layer, layer + 1), *slices) if place.stacked else tuple(slices)


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
    return LAYERS + name, first_layer + int(match.group(1))
