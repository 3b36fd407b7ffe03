"""The names and shapes of tensors in a Hugging Face folder, and where each lies in a released tensor. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from nemo_sdg.checkpoints.names import EMBEDDING, HEAD, HEAD_BIAS, LAYERS, OUTPUT_LAYER, architecture
from nemo_sdg.models.shapes import NemotronShape

QKV = LAYERS + "self_attention.linear_qkv.weight"
SCORE, SCORE_BIAS, LM_HEAD = "score.weight", "score.bias", "lm_head.weight"
_FUSED = ("q_proj", "k_proj", "v_proj")
_OF_LAYER = (
    ("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight"),
    ("input_layernorm.bias", "self_attention.linear_qkv.layer_norm_bias"),
    *((f"self_attn.{part}.weight", "self_attention.linear_qkv.weight") for part in _FUSED),
    ("self_attn.o_proj.weight", "self_attention.linear_proj.weight"),
    ("post_attention_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"),
    ("post_attention_layernorm.bias", "mlp.linear_fc1.layer_norm_bias"),
    ("mlp.up_proj.weight", "mlp.linear_fc1.weight"),
    ("mlp.down_proj.weight", "mlp.linear_fc2.weight"),
)
_LAST = (
    ("model.norm.weight", "model.decoder.final_layernorm.weight"),
    ("model.norm.bias", "model.decoder.final_layernorm.bias"),
    (LM_HEAD, OUTPUT_LAYER),
    (SCORE, HEAD),
    (SCORE_BIAS, HEAD_BIAS),
)


@dataclass(frozen=True)
class HFTensor:
    """A tensor of a Hugging Face folder: some rows of a released tensor, or all of them."""

    name: str
    key: str
    """The released key that it is a part of."""
    layer: int | None
    shape: tuple[int, ...]
    part: int | None
    """0, 1 or 2 for the queries, keys or values of the fused projection."""

    def rows(self, shape: NemotronShape) -> Iterator[tuple[int, int]]:
        """Runs [start, stop) of rows of the released tensor, without its layer axis, that make this one up in order.

        The fused projection holds per KV group all its queries, then its key, then its value.
        Source: NVIDIA/NeMo: nemo/lightning/io/state.py `TransformFns`.
        """
        if self.part is None:
            yield 0, self.shape[0]
            return
        queries = shape.num_attention_heads // shape.num_query_groups
        before, heads = ((0, queries), (queries, 1), (queries + 1, 1))[self.part]
        for group in range(shape.num_query_groups):
            start = (group * (queries + 2) + before) * shape.kv_channels
            yield start, start + heads * shape.kv_channels


def hf_tensors(shape: NemotronShape, keys: Collection[str]) -> Iterator[HFTensor]:
    """The Hugging Face tensors of these released keys, in the order in which they are written."""
    places = architecture(shape)
    groups = shape.num_query_groups * shape.kv_channels
    fused = [(rows, shape.hidden_size) for rows in (shape.query_size, groups, groups)]

    def of(name: str, key: str, layer: int | None, part: int | None = None) -> HFTensor:
        size = places[key].shape[1:] if places[key].stacked else places[key].shape
        return HFTensor(name, key, layer, size if part is None else fused[part], part)

    if EMBEDDING in keys:
        yield of("model.embed_tokens.weight", EMBEDDING, None)
    for layer in range(shape.num_layers):
        for name, short in _OF_LAYER:
            if LAYERS + short in keys:
                part = _FUSED.index(name.split(".")[1]) if LAYERS + short == QKV else None
                yield of(f"model.layers.{layer}.{name}", LAYERS + short, layer, part)
    for name, key in _LAST:
        if key in keys:
            yield of(name, key, None)
