"""Low-rank adapters beside Megatron's parallel linears: y = W x + (alpha / r) B A x, where only A and B are trained.

Source: Hu et al., LoRA (arXiv 2106.09685). NeMo 2.7.3's own (nemo/collections/llm/peft/lora.py) asks for
TransformerEngine, for a rank that TP divides, and saves `linear_fc1` as the two halves of a gated MLP, which Nemotron
does not have. Here only r channels cross the tensor-parallel ranks, never the hidden states a second time.

Axes: S tokens, B rows, I and O channels in and out, R rank of the adapter; `_local` is a tensor-parallel shard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor

from nemo_sdg.checkpoints.load import fresh_tensor
from nemo_sdg.checkpoints.names import TensorPlace, adapter_places
from nemo_sdg.config.lora import TARGETS, Lora
from nemo_sdg.errors import ConfigError
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.parallel.mesh import Mesh


class Adapter(torch.nn.Module):
    """What is added to one linear: `scale * B A x`, cut over tensor-parallel ranks as the linear is."""

    def __init__(
        self, linear: torch.nn.Module, rank: int, scale: float, places: tuple[TensorPlace, TensorPlace]
    ) -> None:
        super().__init__()
        self.scale, self.group = scale, linear.tp_group
        self.column = isinstance(linear, ColumnParallelLinear)
        """The outputs are cut (linear_qkv, linear_fc1), not the inputs (linear_proj, linear_fc2)."""
        self.sequence_parallel = bool(linear.sequence_parallel)
        outputs, inputs = linear.weight.shape
        where = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.a_RI = torch.nn.Parameter(torch.zeros(rank, inputs, **where))
        self.b_OR = torch.nn.Parameter(torch.zeros(outputs, rank, **where))
        self.places = places
        """Of A and B as whole tensors."""
        whole, cut = (self.a_RI, self.b_OR) if self.column else (self.b_OR, self.a_RI)
        # Under sequence parallelism each rank sees some of the tokens; Megatron adds up the gradients of what is marked.
        whole.sequence_parallel = self.sequence_parallel
        cut.tensor_model_parallel = True
        cut.partition_dim, cut.partition_stride = (0 if self.column else 1), 1

    def forward(self, x_SBI: Tensor) -> Tensor:
        """What the linear's output needs added, in the linear's own layout."""
        h_SBR = torch.nn.functional.linear(x_SBI, self.a_RI)
        if self.column and self.sequence_parallel:
            cross = gather_from_sequence_parallel_region
        elif self.column:  # the gradient of h is a sum over the ranks, each of which knows that of its own outputs
            cross = copy_to_tensor_model_parallel_region
        elif self.sequence_parallel:
            cross = reduce_scatter_to_sequence_parallel_region
        else:
            cross = reduce_from_tensor_model_parallel_region
        return self.scale * torch.nn.functional.linear(cross(h_SBR, group=self.group), self.b_OR)

    def delta(self, dtype: torch.dtype) -> Tensor:
        """What the adapter adds to the linear's weight [O_local, I_local], in this dtype."""
        return self.scale * (self.b_OR.to(dtype) @ self.a_RI.to(dtype))

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        cut = {"a_RI": 1} if not self.column else {"b_OR": 0}
        return make_sharded_tensors_for_checkpoint(self.state_dict(keep_vars=True), prefix, cut, ())


class Adapters(torch.nn.Module):
    """The adapters of a model, or of one of its virtual stages, by global layer and linear; see `attach`."""

    merged = False
    """They are in the weights already, and add nothing any more."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleDict()

    def add(self, layer: int, target: str, adapter: Adapter) -> None:
        if str(layer) not in self.layers:
            self.layers[str(layer)] = torch.nn.ModuleDict()
        self.layers[str(layer)][target] = adapter

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        state: dict[str, Any] = {}
        for layer, of_layer in self.layers.items():
            for target, adapter in of_layer.items():
                state |= adapter.sharded_state_dict(f"{prefix}layers.{layer}.{target}.")
        return state


def attach(model: torch.nn.Module, shape: NemotronShape, settings: Lora, seed: int, mesh: Mesh) -> Adapters:
    """Freezes a model whose weights are there and puts fresh adapters beside its linears, as `model.adapters`.

    A is drawn from Xavier's normal distribution (Glorot and Bengio, 2010; NeMo's default), B is zero, so that the
    model is at first what it was. What is drawn follows from the seed and the tensor's name, not from the topology. A reward head goes on being trained as a whole.

    Raises:
        ConfigError: the layers are TransformerEngine's, which keep the normalised input of a linear to themselves.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("rm_head."))
    adapters = Adapters()
    for layer, target, linear in linears(model, settings.targets):
        if not isinstance(linear, (ColumnParallelLinear, RowParallelLinear)):
            raise ConfigError(
                "adapters need Megatron's own linears", where="models.spec", found=type(linear).__name__,
                expected="the local layers", way_out="set models.spec=local for a fit with lora.rank",
            )  # fmt: skip
        places = adapter_places(shape, layer, target, settings.rank)
        adapter = Adapter(linear, settings.rank, settings.alpha / settings.rank, places)
        if not adapter.a_RI.is_meta:
            std = math.sqrt(2.0 / sum(places[0].shape))
            adapter.a_RI.detach().copy_(fresh_tensor(places[0].key, places[0], std, seed, mesh))
        adapters.add(layer, target, adapter)
        linear.register_forward_hook(_adding(adapters, adapter))
    model.adapters = adapters
    if model.pre_process and model.config.recompute_granularity == "full":
        # A layer that is computed again gets no gradients when nothing that goes into it asks for one.
        model.embedding.register_forward_hook(lambda module, args, output: output.requires_grad_())
    return adapters


def _adding(adapters: Adapters, adapter: Adapter) -> Callable[..., tuple[Tensor, Any] | None]:
    def hook(module: Any, args: tuple[Tensor, ...], output: tuple[Tensor, Any]) -> tuple[Tensor, Any] | None:
        return None if adapters.merged else (output[0] + adapter(args[0]), output[1])

    return hook


def linears(model: torch.nn.Module, targets: Sequence[str]) -> Iterator[tuple[int, str, torch.nn.Module]]:
    """(global layer, name, module) of the linears of a model that have these names."""
    for layer in model.decoder.layers:
        for owner in (layer.self_attention, layer.mlp):
            for name in targets:
                if hasattr(owner, name):
                    yield layer.layer_number - 1, name, getattr(owner, name)


@torch.no_grad()
def merge(model: torch.nn.Module) -> None:
    """Adds the adapters to the weights, each sum rounded once; the model computes as before, without them."""
    adapters = model.adapters
    for layer, target, linear in linears(model, TARGETS):
        if target in adapters.layers[str(layer)]:
            wide = torch.promote_types(linear.weight.dtype, torch.float32)
            linear.weight.copy_(linear.weight.to(wide) + adapters.layers[str(layer)][target].delta(wide))
    adapters.merged = True
