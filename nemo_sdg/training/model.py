"""Nemotron as NeMo's Lightning module: the same megatron model as everywhere else, with our losses.

Axes: B rows, S tokens, V vocabulary (`_local`: this tensor-parallel rank's), A reward outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from nemo.collections import llm
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch import Tensor

from nemo_sdg.checkpoints.names import architecture, released_key
from nemo_sdg.models import nemotron
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.parallel import device
from nemo_sdg.training.forward import forward, to_device
from nemo_sdg.training.lora import plain, to_save
from nemo_sdg.training.objectives import SumAndCount, regression, token_nll


@dataclass
class NemotronConfig(llm.NemotronConfig):
    """NeMo's config of a model that `models.nemotron.build` makes."""

    # NeMo notes what an object was made of only where neither its class nor, before it, a parent was made: it looks for this
    # mark, which is inherited. Without the note the other virtual stages would be made of nothing.
    __wrapped_init__ = False

    reward: bool = False
    """Nine rewards at the last token, in place of logits."""
    head_bias: bool = False
    """The reward head has a bias, as NVIDIA/NeMo-Aligner's does by default."""
    spec: str = "auto"
    """Layer implementation: local, te or auto."""
    calculate_per_token_loss: bool = True
    """Gradients are sums, divided once by the number of targets of the whole global batch."""

    def configure_model(
        self,
        tokenizer: Any,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> GPTModel:
        if self.virtual_pipeline_model_parallel_size:
            vp_stage = vp_stage or 0  # NeMo names all but the first
        first = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)
        last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
        return nemotron.build(
            self,
            shape_of(self),
            pre_process=first if pre_process is None else pre_process,
            post_process=last if post_process is None else post_process,
            reward=self.reward,
            head_bias=self.head_bias,
            spec=self.spec,
            vp_stage=vp_stage,
        )


def config_of(
    shape: NemotronShape,
    *,
    dtype: torch.dtype,
    reward: bool,
    head_bias: bool,
    spec: str,
    virtual_stages: int = 1,
    **more: Any,
) -> NemotronConfig:
    """NeMo's config for this shape; the strategy fills in the topology. All weights must come from a checkpoint.

    Args:
        more: further fields of it. NeMo makes the config of each virtual stage anew from what it was made of here.
    """
    return NemotronConfig(
        **{**nemotron.transformer_arguments(shape, dtype=dtype), **more},
        vocab_size=shape.vocab_size,
        seq_length=shape.seq_length,
        rotary_percent=shape.rotary_percent,
        rotary_base=shape.rotary_base,
        perform_initialization=False,
        # NeMo's default frees what a stage has sent: on a GPU behind the send, on a CPU while gloo still reads it.
        deallocate_pipeline_outputs=device.has_cuda(),
        # Batched sends and receives get interleaved stages wrong without an error.
        overlap_p2p_comm=virtual_stages > 1,
        batch_p2p_comm=virtual_stages == 1,
        reward=reward,
        head_bias=head_bias,
        spec=spec,
    )


def shape_of(config: NemotronConfig) -> NemotronShape:
    """The sizes that a NeMo config describes."""
    return NemotronShape(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.ffn_hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_query_groups,
        kv_channels=config.kv_channels,
        vocab_size=config.vocab_size,
        seq_length=config.seq_length,
        init_method_std=config.init_method_std,
        rotary_percent=config.rotary_percent,
        rotary_base=config.rotary_base,
        layernorm_epsilon=config.layernorm_epsilon,
    )


class NemotronModule(llm.NemotronModel):
    """The Lightning module: Nemotron under SFT, or a reward model under attribute regression."""

    fill: Callable[[GPTModel], object] | None = None
    """Loads the start weights into a model just built; set before the fit."""
    objective: SumAndCount | None = None
    """The loss; None is next-token prediction, or attribute regression of a reward model."""

    @property
    def step_lines(self) -> list[int]:
        """Where the samples that this rank has read since it was cleared stand in their file."""
        return self.__dict__.setdefault("_step_lines", [])

    def configure_model(self, vp_stage: int | None = None) -> None:
        if hasattr(self, "module"):
            return
        self.module = self.config.configure_model(self.tokenizer, vp_stage=vp_stage)
        mark_shards(self.module, shape_of(self.config))
        if self.fill is not None:
            # Before Megatron wraps it: its buffers and main parameters are copies of what is here now.
            self.fill(self.module)

    def data_step(self, dataloader_iter: Any) -> dict[str, Any]:
        """The next micro batch (`batches.collate`), its tensors on this rank's device."""
        batch = next(dataloader_iter)
        if isinstance(batch, tuple):  # Lightning adds the indices of the batch and of its loader
            batch = batch[0]
        self.step_lines.extend(batch["lines"].tolist())
        return to_device(batch)

    def forward_step(self, batch: dict[str, Any]) -> Tensor:
        """Logits [B, S, V_local] or rewards [N, A] on the last stage, hidden states elsewhere."""
        return forward(self.module, batch, reward=self.config.reward)

    def sharded_state_dict(self, prefix: str = "", metadata: dict | None = None) -> dict[str, Any]:
        """What NeMo saves and loads of this rank's model, or of one of its virtual stages."""
        state = self.module.sharded_state_dict(prefix=prefix, metadata=metadata)
        return to_save(plain(self.module), state)

    @property
    def strict_loading(self) -> bool:
        """A checkpoint holds all weights; one of adapters in training holds them alone."""
        return not hasattr(plain(self.module), "adapters")

    @property
    def training_loss_reduction(self) -> "TargetLoss":
        if self._training_loss_reduction is None:
            default = regression if self.config.reward else token_nll
            self._training_loss_reduction = TargetLoss(self.objective or default)
        return self._training_loss_reduction


def mark_shards(model: GPTModel, shape: NemotronShape) -> None:
    """Tell Megatron's gradient norm which parameters are shards and which are copies.

    Its layers do so only while they draw initial weights. Without the marks the norm counts the shards of
    tensor-parallel rank 0 alone, and clips less than it should.
    """
    places = architecture(shape)
    for name, parameter in model.named_parameters():
        key, _ = released_key(name, 0)
        if places[key].tp_axis is not None:
            parameter.tensor_model_parallel = True
            parameter.partition_dim, parameter.partition_stride = places[key].tp_axis, 1


class TargetLoss(MegatronLossReduction):
    """A loss that is a sum over targets, normalised over all targets of the global batch."""

    def __init__(self, sum_and_count: SumAndCount) -> None:
        super().__init__()
        self.sum_and_count = sum_and_count
        self.local_loss = 0.0
        """This rank's part of the last step's sum, before replicas are added up."""
        self.bad_lines: list[int] = []
        """Where the samples stand in their file whose micro batches made it not finite."""
        self._lines: list[Tensor] = []

    def forward(self, batch: dict[str, Tensor], forward_out: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        self._lines.append(batch["lines"])
        total, count = self.sum_and_count(batch, forward_out)
        count = count.to(torch.int)  # Megatron adds these up in an int tensor
        return total, count, {"sum_and_count": torch.stack((total.detach().double(), count.double()))}

    def reduce(self, losses_reduced_per_micro_batch: list[dict[str, Tensor]]) -> Tensor:
        """Mean loss over the targets of the global batch, fp64, the same on all replicas."""
        by_micro_batch = torch.stack([entry["sum_and_count"] for entry in losses_reduced_per_micro_batch])
        total, lines, self._lines = by_micro_batch.sum(dim=0), self._lines, []
        self.local_loss = total[0].item()
        if not math.isfinite(self.local_loss):
            bad = (~by_micro_batch[:, 0].isfinite()).tolist()
            # Finite ones whose sum is not have done it together.
            self.bad_lines = [line for own, one in zip(lines, bad) if one or not any(bad) for line in own.tolist()]
        torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        return total[0] / total[1].clamp(min=1)
