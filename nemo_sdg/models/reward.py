"""The reward model: Nemotron with nine outputs read at the last token of a conversation.

The head reads the hidden state after the final norm, on the last pipeline stage only.
Source: NVIDIA/NeMo-Aligner: nemo_aligner/models/nlp/gpt/gpt_reward_model.py, model card of
Nemotron-4-340B-Reward. Axes: S sequence, B batch, N sequences, E hidden size, A outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from megatron.core.tensor_parallel import RowParallelLinear, gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from nemo_sdg.config.selection import OUTPUTS
from nemo_sdg.models.nemotron import NemotronModel
from nemo_sdg.models.shapes import NUM_REWARD_OUTPUTS


class RewardModel(NemotronModel):
    """Nemotron whose last stage gives rewards instead of logits."""

    is_reward = True
    outputs: Mapping[str, int] = OUTPUTS
    """Its outputs by name, as the folder that it is loaded from tells them."""

    def __init__(self, *args: Any, head_bias: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head_bias = head_bias  # known on every stage
        self._last_N2: Tensor | None = None
        if self.post_process:
            # The released folders still carry the language model's output layer; nothing reads it, and
            # weight decay would change it.
            del self.output_layer
            head_config = copy.copy(self.config)
            head_config.sequence_parallel = False  # it sees one gathered token per row
            self.rm_head = RowParallelLinear(
                self.config.hidden_size,
                NUM_REWARD_OUTPUTS,
                config=head_config,
                init_method=self.config.init_method,
                bias=head_bias,
                input_is_parallel=False,
                skip_bias_add=False,
                tp_group=self.pg_collection.tp,
            )

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        last: Tensor | None = None,
        inference_context: Any = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Rewards [N, A] of N sequences on the last stage, hidden states [S, B, E] on the others.

        Args:
            input_ids: tokens [B, S], padded on the right.
            last: where each sequence ends, as (row, position) [N, 2]; the reward is read there.
            inference_context: a packed pass (`models.attention.KeyValues`) in place of `last`; rewards are [1, rows, A]
                at the tokens that it selects.
            packed_seq_params: sequences that share rows (`models.attention.Segments`).
        """
        self._last_N2 = last
        return super().forward(
            input_ids,
            position_ids,
            attention_mask,
            inference_context=inference_context,
            packed_seq_params=packed_seq_params,
        )

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        # Past GPTModel's own, which looks for the output layer that is not here.
        return MegatronModule.sharded_state_dict(self, prefix, sharded_offsets, metadata)

    def _postprocess(self, hidden_states: Tensor, *, inference_context: Any = None, **_: Any) -> Tensor:
        if not self.post_process:
            return hidden_states
        if inference_context is not None:
            rewards_RBA, _ = self.rm_head(inference_context.select(hidden_states))
            return rewards_RBA.transpose(0, 1)
        if self.config.sequence_parallel:
            # Every TP rank then computes the same head, so the gradient is split, not summed.
            hidden_states = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=False)
        rows_N, positions_N = self._last_N2.unbind(1)
        rewards_NA, _ = self.rm_head(hidden_states[positions_N, rows_N])
        return rewards_NA
