"""Settings of low-rank adapters: what is trained beside a frozen model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Optional

TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
"""The linears of a layer, by Megatron's names."""


@dataclass(kw_only=True)
class Lora:
    rank: Optional[int] = None
    """Rank of the adapters that are trained in place of the weights (NeMo's default: 32); null trains all weights."""
    alpha: float = 32.0
    """The adapters' output is multiplied by alpha / rank."""
    targets: List[str] = field(default_factory=lambda: list(TARGETS))
    """Linears that get an adapter: linear_qkv, linear_proj (attention), linear_fc1, linear_fc2 (MLP)."""
    apart: bool = False
    """Keep the trained adapters as `adapter/` in the model's folder, too, in Hugging Face PEFT's layout. The model itself
    always has them in its weights, so that it is one like any other."""
