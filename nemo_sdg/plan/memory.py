"""What one rank holds, in parameters and bytes, from the table of tensors alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_sdg.checkpoints.names import tensor_places
from nemo_sdg.config import RunConfig
from nemo_sdg.models.shapes import NemotronShape

ITEM_BYTES = {"fp64": 8, "fp32": 4, "bf16": 2}
GRADIENT_BYTES = {"fp64": 8, "fp32": 4, "bf16": 4}
"""Per trained parameter: gradients of bf16 weights are summed in fp32."""
OPTIMIZER_BYTES = {"fp64": 16, "fp32": 8, "bf16": 12}
"""Per trained parameter: Adam's two moments, and the fp32 master weight of a bf16 one."""


@dataclass(frozen=True)
class StagePlan:
    """Memory of one rank of a pipeline stage, in bytes."""

    stage: int
    parameters: int
    weights: int
    training: int
    kv_cache: int


@dataclass(frozen=True)
class ModelPlan:
    """One model that a run reads."""

    role: str
    where: str
    shape: NemotronShape
    reward: bool
    stored_bytes: int
    """Bytes of one element on disk."""
    present: bool = True

    @property
    def parameters(self) -> int:
        return rank_parameters(self.shape, tp=1, pp=1, stage=0, reward=self.reward)


def rank_parameters(shape: NemotronShape, tp: int, pp: int, stage: int, reward: bool = False) -> int:
    """Parameters that one rank of a pipeline stage holds: shards of what TP cuts, copies of the norms."""
    total = 0
    for place in tensor_places(shape, reward=reward).values():
        if (place.stage == "first" and stage > 0) or (place.stage == "last" and stage < pp - 1):
            continue
        total += math.prod(place.shape) // (tp if place.tp_axis is not None else 1) // (pp if place.stacked else 1)
    return total


def bytes_text(count: float) -> str:
    """A size for people: 1024 bytes are a KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def stage_plan(
    config: RunConfig, models: Sequence[ModelPlan], dtype: str, stage: int, optimizer_shards: int
) -> StagePlan:
    """The largest of the models in each phase: only one is in memory at a time."""
    topology, item = config.topology, ITEM_BYTES[dtype]
    held = [rank_parameters(m.shape, topology.tp, topology.pp, stage, m.reward) for m in models]
    trained = [n for n, m in zip(held, models) if m.role.startswith("train")]
    policy = models[0].shape
    per_token = 2 * policy.num_query_groups // topology.tp * policy.kv_channels * policy.num_layers // topology.pp
    return StagePlan(
        stage=stage,
        parameters=max(held),
        weights=max(held) * item,
        training=int(max(trained, default=0) * (GRADIENT_BYTES[dtype] + OPTIMIZER_BYTES[dtype] / optimizer_shards)),
        kv_cache=config.generate.slots * policy.seq_length * per_token * item,
    )


def merged(stages: Sequence[StagePlan]) -> list[tuple[str, StagePlan]]:
    """Neighbouring stages that hold the same share one row."""
    merged: list[tuple[int, int, StagePlan]] = []
    for stage in stages:
        if merged and _same(merged[-1][2], stage):
            merged[-1] = (merged[-1][0], stage.stage, stage)
        else:
            merged.append((stage.stage, stage.stage, stage))
    return [(f"{a}" if a == b else f"{a} to {b}", stage) for a, b, stage in merged]


def _same(a: StagePlan, b: StagePlan) -> bool:
    return (a.parameters, a.training, a.kv_cache) == (b.parameters, b.training, b.kv_cache)
