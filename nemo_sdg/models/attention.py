"""Grouped-query attention of Nemotron: one forward for training, prefill and decoding.

Axes: S sequence (queries), T sequence (keys), B batch, H query heads, G KV groups, D head channels,
R rotary channels. `_local` is a tensor-parallel shard; heads are always local here.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class KeyValues(Protocol):
    """What decoding gives to the attention: where the rows stand, and the keys and values before them."""

    cos_SB1R: Tensor
    sin_SB1R: Tensor

    def extend(self, layer: int, key_SBGD: Tensor, value_SBGD: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys (already rotated) and values; all of the rows' keys and values, as BGTD."""

    def mask(self) -> Tensor | None:
        """What a query may look at, bool [B, 1, S, T] with True = visible; None is causal."""


def rotate(x_SBHD: Tensor, cos_SB1R: Tensor, sin_SB1R: Tensor) -> Tensor:
    """Rotary position embedding on the first R channels of each head, the others pass through.

    Source: Su et al., RoFormer (arXiv 2104.09864), in the half-rotation form of
    NVIDIA/Megatron-LM: megatron/core/models/common/embeddings/rope_utils.py.
    """
    num_rotary = cos_SB1R.size(-1)
    x_rotary, x_pass = x_SBHD[..., :num_rotary], x_SBHD[..., num_rotary:]
    first, second = x_rotary.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return torch.cat((x_rotary * cos_SB1R + turned * sin_SB1R, x_pass), dim=-1)


def attend(query_BHSD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, visible_B1ST: Tensor | None) -> Tensor:
    """Softmax attention of H query heads over G groups of keys and values, BHSD; without a mask it is causal."""
    num_rows, num_heads, num_queries, _ = query_BHSD.shape
    num_groups = key_BGTD.size(1)
    if num_queries == 1 and visible_B1ST is not None:
        # One query per row: the heads of a group stand where a sequence would, so no key is copied per head.
        query_BGMD = query_BHSD.reshape(num_rows, num_groups, num_heads // num_groups, -1)
        context_BGMD = scaled_dot_product_attention(query_BGMD, key_BGTD, value_BGTD, attn_mask=visible_B1ST)
        return context_BGMD.reshape(num_rows, num_heads, 1, -1)
    return scaled_dot_product_attention(
        query_BHSD,
        key_BGTD,
        value_BGTD,
        attn_mask=visible_B1ST,
        is_causal=visible_B1ST is None,
        enable_gqa=num_groups != num_heads,
    )


class NemotronSelfAttention(SelfAttention):
    """Megatron's projections around `scaled_dot_product_attention`, with rotated keys in the cache."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        inference_context: KeyValues | None = None,
        rotary_pos_emb: Tensor | None = None,
        packed_seq_params: Any = None,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """Attention over hidden states [S, B, hidden] (sequence-sharded under sequence parallelism).

        Args:
            attention_mask: bool [B or 1, 1, S, S], True = hidden, as Megatron has it; None is causal.
            rotary_pos_emb: angles [S, 1, 1, R] of positions 0 to S - 1; not used with an inference context.
        """
        assert packed_seq_params is None, "packed sequences come as a block-diagonal mask"
        query_SBHD, key_SBGD, value_SBGD = self.get_query_key_value_tensors(hidden_states)
        if inference_context is None:
            # In the model's dtype: angles are always fp32, as in transformers' modeling_nemotron.py.
            cos_SB1R, sin_SB1R = rotary_pos_emb.cos().to(query_SBHD.dtype), rotary_pos_emb.sin().to(query_SBHD.dtype)
        else:
            cos_SB1R, sin_SB1R = inference_context.cos_SB1R, inference_context.sin_SB1R
        query_SBHD = rotate(query_SBHD, cos_SB1R, sin_SB1R)
        key_SBGD = rotate(key_SBGD, cos_SB1R, sin_SB1R)
        if inference_context is None:
            key_BGTD, value_BGTD = key_SBGD.permute(1, 2, 0, 3), value_SBGD.permute(1, 2, 0, 3)
            visible_B1ST = None if attention_mask is None else ~attention_mask
        else:
            key_BGTD, value_BGTD = inference_context.extend(self.layer_number, key_SBGD, value_SBGD)
            visible_B1ST = inference_context.mask()
        context_BHSD = attend(query_SBHD.permute(1, 2, 0, 3), key_BGTD, value_BGTD, visible_B1ST)
        context_SBE_local = context_BHSD.permute(2, 0, 1, 3).flatten(2)
        return self.linear_proj(context_SBE_local)
