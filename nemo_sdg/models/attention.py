"""Grouped-query attention of Nemotron: one forward for training, generation and scoring.

Axes: S sequence (queries), T sequence (keys), B batch, H query heads, G KV groups, D head channels,
R rotary channels. `_local` is a tensor-parallel shard; heads are always local here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class KeyValues(Protocol):
    """What a packed forward pass without gradients gives to Megatron as `inference_context`.

    Its tokens stand in one sequence [S, 1], whatever conversations they belong to; it says where each of them stands in its
    own, and how they attend.
    """

    cos_S11R: Tensor
    sin_S11R: Tensor
    max_sequence_length: int

    def attend(self, layer: int, query_SBHD: Tensor, key_SBGD: Tensor, value_SBGD: Tensor) -> Tensor:
        """The heads' outputs [S, B, H, D] in a layer, numbered from 1 over the whole model; queries and keys are rotated."""

    def select(self, hidden_SBE: Tensor) -> Tensor:
        """The tokens that go through the output layer or the reward head [rows, 1, E]."""

    # What Megatron's layers ask, to choose among CUDA graphs.
    def is_decode_only(self) -> bool: ...

    def is_static_batching(self) -> bool:
        return True

    def is_dynamic_batching(self) -> bool:
        return False


@dataclass
class Segments(PackedSeqParams):
    """Sequences that share the rows of a batch: each sees itself alone, and its positions begin at 0.

    A kind of Megatron's own parameters for packed sequences, so that its layers hand it on to the attention.
    """

    position_ids_BS: Tensor | None = None
    sizes: tuple[tuple[int, ...], ...] = ()
    """By row, the tokens of each of its sequences in their order; what is left of the row is padding."""

    @classmethod
    def of(cls, position_ids_BS: Tensor, sizes: tuple[tuple[int, ...], ...]) -> Segments:
        longest = max((size for row in sizes for size in row), default=1)
        return cls(max_seqlen_q=longest, max_seqlen_kv=longest, position_ids_BS=position_ids_BS, sizes=sizes)

    def attend(self, query_SBHD: Tensor, key_SBGD: Tensor, value_SBGD: Tensor) -> Tensor:
        """The heads' outputs [S, B, H, D]; those of padding are 0."""
        rows = zip(self.sizes, query_SBHD.unbind(1), key_SBGD.unbind(1), value_SBGD.unbind(1))
        return torch.stack([self._row(sizes, *parts) for sizes, *parts in rows], dim=1)

    @staticmethod
    def _row(sizes: tuple[int, ...], query_SHD: Tensor, key_SGD: Tensor, value_SGD: Tensor) -> Tensor:
        padding = query_SHD.size(0) - sum(sizes)
        # Split, not sliced: the gradient of each slice would be a tensor as large as the whole row.
        cut = [x.split([*sizes, padding]) for x in (query_SHD, key_SGD, value_SGD)]
        outputs = []
        for query, key, value in list(zip(*cut))[:-1]:
            heads_1HSD = attend(*(x.transpose(0, 1).unsqueeze(0) for x in (query, key, value)), None)
            outputs.append(heads_1HSD.squeeze(0).transpose(0, 1))
        return torch.cat([*outputs, torch.zeros_like(cut[0][-1])])


def rotate(x_SBHD: Tensor, cos_S11R: Tensor, sin_S11R: Tensor) -> Tensor:
    """Rotary position embedding on the first R channels of each head, the others pass through.

    Cosines and sines are [S, 1, 1, R], or [S, B, 1, R] where rows have positions of their own.
    Source: Su et al., RoFormer (arXiv 2104.09864), in the half-rotation form of
    NVIDIA/Megatron-LM: megatron/core/models/common/embeddings/rope_utils.py.
    """
    num_rotary = cos_S11R.size(-1)
    x_rotary, x_pass = x_SBHD[..., :num_rotary], x_SBHD[..., num_rotary:]
    first, second = x_rotary.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return torch.cat((x_rotary * cos_S11R + turned * sin_S11R, x_pass), dim=-1)


def attend(query_BHSD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, visible_B1ST: Tensor | None) -> Tensor:
    """Softmax attention of H query heads over G groups of keys and values, BHSD; without a mask it is causal."""
    return scaled_dot_product_attention(
        query_BHSD,
        key_BGTD,
        value_BGTD,
        attn_mask=visible_B1ST,
        is_causal=visible_B1ST is None,
        enable_gqa=key_BGTD.size(1) != query_BHSD.size(1),
    )


class NemotronSelfAttention(SelfAttention):
    """Megatron's projections around `scaled_dot_product_attention`, with rotated keys in the cache."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        inference_context: KeyValues | None = None,
        rotary_pos_emb: Tensor | None = None,
        packed_seq_params: Segments | None = None,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """Attention over hidden states [S, B, hidden] (sequence-sharded under sequence parallelism).

        Args:
            attention_mask: bool [B or 1, 1, S, S], True = hidden, as Megatron has it; None is causal.
            rotary_pos_emb: angles [S, 1, 1, R] of positions 0 to S - 1; not used with an inference context.
            packed_seq_params: sequences that share rows (`Segments`); the angles are then of the longest one's positions.
        """
        query_SBHD, key_SBGD, value_SBGD = self.get_query_key_value_tensors(hidden_states)
        if inference_context is not None:
            cos_S11R, sin_S11R = inference_context.cos_S11R, inference_context.sin_S11R
        else:
            # In the model's dtype: angles are always fp32, as in transformers' modeling_nemotron.py.
            cos_S11R, sin_S11R = rotary_pos_emb.cos().to(query_SBHD.dtype), rotary_pos_emb.sin().to(query_SBHD.dtype)
        if packed_seq_params is not None:
            position_ids_SB = packed_seq_params.position_ids_BS.T
            cos_S11R, sin_S11R = (x[position_ids_SB].squeeze(2) for x in (cos_S11R, sin_S11R))  # [S, B, 1, R]
        query_SBHD, key_SBGD = rotate(query_SBHD, cos_S11R, sin_S11R), rotate(key_SBGD, cos_S11R, sin_S11R)
        if inference_context is not None:
            context_SBHD = inference_context.attend(self.layer_number, query_SBHD, key_SBGD, value_SBGD)
        elif packed_seq_params is not None:
            context_SBHD = packed_seq_params.attend(query_SBHD, key_SBGD, value_SBGD)
        else:
            key_BGTD, value_BGTD = key_SBGD.permute(1, 2, 0, 3), value_SBGD.permute(1, 2, 0, 3)
            visible_B1ST = None if attention_mask is None else ~attention_mask
            context_BHSD = attend(query_SBHD.permute(1, 2, 0, 3), key_BGTD, value_BGTD, visible_B1ST)
            context_SBHD = context_BHSD.permute(2, 0, 1, 3)
        return self.linear_proj(context_SBHD.flatten(2))
