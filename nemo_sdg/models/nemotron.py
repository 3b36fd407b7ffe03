"""Nemotron on megatron-core: zero-centred LayerNorm with bias, squared ReLU, half rotary, grouped queries.

`build` is the only place that makes a model; generation, scoring and NeMo's trainer all call it.
Axes: S sequence, B batch, E hidden size, V vocabulary; `_local` is a tensor-parallel shard.
Source of the architecture: Nemotron-4 340B Technical Report (arXiv 2406.11704) and
NVIDIA/NeMo: nemo/collections/llm/gpt/model/nemotron.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from megatron.core.utils import get_pg_rank
from torch import Tensor

from nemo_sdg.errors import ConfigError
from nemo_sdg.models.attention import NemotronSelfAttention
from nemo_sdg.models.linear import ColumnParallel, RowParallel
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.parallel import device

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)^2 (So et al., Primer, arXiv 2109.08668)."""
    return torch.relu(x).square()


class LayerNorm1P(torch.nn.Module):
    """LayerNorm with bias whose scale is stored minus one: y = (x - mean) / std * (1 + weight) + bias.

    Megatron's own norm without TransformerEngine or Apex refuses the zero-centred form.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        place = {
            "dtype": config.params_dtype,
            "device": torch.get_default_device() if config.use_cpu_initialization else device.device(),
        }
        self.weight = torch.nn.Parameter(torch.zeros(hidden_size, **place))
        self.bias = torch.nn.Parameter(torch.zeros(hidden_size, **place))
        self.eps = eps
        for parameter in (self.weight, self.bias):
            # Megatron sums these gradients over the TP group; without the mark the copies drift apart.
            parameter.sequence_parallel = config.sequence_parallel

    def forward(self, x_SBE: Tensor) -> Tensor:
        # 1 + weight in bf16 would lose what a zero-centred weight is for: its last 8 bits.
        wide = torch.promote_types(x_SBE.dtype, torch.float32)
        y_SBE = torch.nn.functional.layer_norm(
            x_SBE.to(wide), self.weight.shape, self.weight.to(wide) + 1, self.bias.to(wide), self.eps
        )
        return y_SBE.to(x_SBE.dtype)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        return make_sharded_tensors_for_checkpoint(self.state_dict(keep_vars=True), prefix, {}, sharded_offsets)


class NemotronModel(GPTModel):
    """`GPTModel` that returns vocabulary-parallel logits and leaves the loss to `training.losses`.

    Megatron's own cross entropy casts to fp32, which would hide errors of parallel code in fp64.
    """

    is_reward = False
    head_bias = False

    def __init__(self, config: TransformerConfig, *args: Any, vocab_size: int, **kwargs: Any) -> None:
        shard = -(-vocab_size // config.tensor_model_parallel_size)
        super().__init__(config, *args, vocab_size=shard * config.tensor_model_parallel_size, **kwargs)
        self.vocab_size = vocab_size
        """Entries of the true vocabulary, of all shards; where TP does not divide it, the last shards are padded."""
        filled = vocab_size - shard * get_pg_rank(self.pg_collection.tp)
        self.num_padding = shard - min(shard, max(0, filled))
        """Entries at the end of this rank's shard that are no token."""

    def _postprocess(self, hidden_states: Tensor, *, labels: None, inference_context: Any = None, **_: Any) -> Tensor:
        """Last stage: logits [B, S, V_local], -inf for padding; other stages: hidden states [S, B, E].

        With an inference context only the positions that it asks for become logits.
        """
        assert labels is None, "losses are computed in training.losses"
        if not self.post_process:
            return hidden_states
        if inference_context is not None:
            hidden_states = inference_context.select(hidden_states)
        logits_SBV_local, _ = self.output_layer(hidden_states)
        if self.num_padding:
            # Their weights are zero, but a logit of 0 would be sampled and would count in a softmax.
            logits_SBV_local[..., -self.num_padding :] = -torch.inf
        return logits_SBV_local.transpose(0, 1).contiguous()


def transformer_config(
    shape: NemotronShape,
    *,
    dtype: torch.dtype = torch.float32,
    tp: int = 1,
    pp: int = 1,
    first_stage_layers: int | None = None,
    last_stage_layers: int | None = None,
    virtual_stages: int = 1,
    sequence_parallel: bool = False,
    initialize: bool = False,
) -> TransformerConfig:
    """Megatron's config for this shape and topology.

    Args:
        virtual_stages: chunks of each pipeline stage; `build` is then called once per chunk, with its `vp_stage`.
        initialize: draw initial weights; without it every weight must come from a checkpoint.
    """
    return TransformerConfig(
        **transformer_arguments(shape, dtype=dtype),
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        num_layers_in_first_pipeline_stage=first_stage_layers,
        # Of two stages the first says it all; given both, Megatron divides by the zero stages between them.
        num_layers_in_last_pipeline_stage=None if pp == 2 and first_stage_layers is not None else last_stage_layers,
        virtual_pipeline_model_parallel_size=virtual_stages if virtual_stages > 1 else None,
        sequence_parallel=sequence_parallel and tp > 1,
        perform_initialization=initialize,
    )


def transformer_arguments(shape: NemotronShape, *, dtype: torch.dtype) -> dict[str, Any]:
    """The fields of Megatron's config that the architecture, the dtype and the device decide.

    NeMo's own config class takes the same fields, so both describe one model.
    """
    cpu = not device.has_cuda()
    return dict(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        kv_channels=shape.kv_channels,
        init_method_std=shape.init_method_std,
        layernorm_epsilon=shape.layernorm_epsilon,
        normalization="LayerNorm",
        layernorm_zero_centered_gamma=True,
        activation_func=squared_relu,
        gated_linear_unit=False,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        use_cpu_initialization=cpu,
        # Each of these needs a CUDA kernel, Apex or a compiler.
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        persist_layer_norm=False,
        apply_rope_fusion=False,
        cross_entropy_loss_fusion=False,
        # torch.cuda.synchronize after each batch of sends and receives.
        batch_p2p_sync=False,
    )


def has_transformer_engine() -> bool:
    """Whether TransformerEngine's layers can be used: installed, and there is a GPU."""
    from megatron.core.models.gpt import gpt_layer_specs

    return bool(gpt_layer_specs.HAVE_TE) and device.has_cuda()


def layer_spec(spec: str = "auto") -> TransformerBlockSubmodules | ModuleSpec:
    """One transformer layer with our attention; `te` fuses the norms into TransformerEngine's linears.

    The two hold the same checkpoint keys: the local one maps its norms to the fused names.
    """
    if spec == "te" and not has_transformer_engine():
        raise ConfigError(
            "TransformerEngine cannot be used here",
            where="models.spec",
            found="te",
            expected="local, or a GPU with transformer-engine installed",
            way_out="set models.spec=auto",
        )
    te = spec == "te" or (spec == "auto" and has_transformer_engine())
    if te:
        from megatron.core.extensions.transformer_engine import TELayerNormColumnParallelLinear, TERowParallelLinear

        column, row, norm = TELayerNormColumnParallelLinear, TERowParallelLinear, IdentityOp
    else:
        column, row, norm = ColumnParallel, RowParallel, LayerNorm1P
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=NemotronSelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(linear_qkv=column, core_attention=IdentityOp, linear_proj=row),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row)),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map={}
            if te
            else {
                "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
                "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
            },
        ),
    )


def block_spec(
    config: TransformerConfig, spec: str = "auto", vp_stage: int | None = None, pp_rank: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of this stage and the final norm.

    A bare layer spec would give the block Megatron's default final norm, which refuses the zero-centred form.
    """
    te = spec == "te" or (spec == "auto" and has_transformer_engine())
    final_norm: Any = LayerNorm1P
    if te:
        from megatron.core.extensions.transformer_engine import TENorm

        final_norm = TENorm
    count = get_num_layers_to_build(config, vp_stage=vp_stage, pp_rank=pp_rank)
    return TransformerBlockSubmodules(layer_specs=[layer_spec(spec)] * count, layer_norm=final_norm)


def build(
    config: TransformerConfig,
    shape: NemotronShape,
    *,
    pre_process: bool,
    post_process: bool,
    reward: bool = False,
    head_bias: bool = False,
    spec: str = "auto",
    vp_stage: int | None = None,
    groups: ProcessGroupCollection | None = None,
) -> NemotronModel:
    """This rank's part of a language model, or of a reward model.

    Called as `model(input_ids_BS, position_ids_BS, attention_mask)`.

    Args:
        groups: the ranks that it talks to (`Mesh.groups`); None is what megatron's `parallel_state` has.
    """
    from nemo_sdg.models.reward import RewardModel

    groups = groups or ProcessGroupCollection.use_mpu_process_groups()
    kind = partial(RewardModel, head_bias=head_bias) if reward else NemotronModel
    return kind(
        config=config,
        transformer_layer_spec=block_spec(config, spec, vp_stage, get_pg_rank(groups.pp)),
        vocab_size=shape.vocab_size,
        max_sequence_length=shape.seq_length,
        pre_process=pre_process,
        post_process=post_process,
        parallel_output=True,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_percent=shape.rotary_percent,
        rotary_base=shape.rotary_base,
        pg_collection=groups,
        vp_stage=vp_stage,
    )
