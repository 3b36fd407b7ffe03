"""What one rank holds, in parameters and bytes, from the table of tensors alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_sdg.checkpoints.names import tensor_places
from nemo_sdg.config import RunConfig, Topology
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.models.stages import stage_layers
from nemo_sdg.plan.loading import Loading
from nemo_sdg.plan.units import bytes_text

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
    read: tuple[int, int, int]
    """Bytes, files and byte ranges of the model that takes most of each to load."""

    def reads(self) -> tuple[str, str, str]:
        return bytes_text(self.read[0]), f"{self.read[1]:,}", f"{self.read[2]:,}"


@dataclass(frozen=True)
class ModelPlan:
    """One model that a run reads."""

    role: str
    where: str
    shape: NemotronShape
    reward: bool
    loading: Loading
    """What each rank reads of it."""
    note: str = ""
    """What of it is not here."""

    @property
    def aside(self) -> str:
        return f"  ({self.note})" if self.note else ""

    @property
    def parameters(self) -> int:
        return rank_parameters(self.shape, 1, self.shape.num_layers, first=True, last=True, reward=self.reward)


def rank_parameters(
    shape: NemotronShape, tp: int, layers: int, *, first: bool, last: bool, reward: bool = False
) -> int:
    """Parameters that one rank of a pipeline stage holds: shards of what TP cuts, copies of the norms.

    A vocabulary that TP does not divide is padded.

    Args:
        layers: transformer layers of the stage.
        first, last: the stage is the first, the last one.
    """
    total = 0
    for place in tensor_places(shape, reward=reward).values():
        if (place.stage == "first" and not first) or (place.stage == "last" and not last):
            continue
        sizes = list(place.shape[1:] if place.stacked else place.shape)
        if place.tp_axis is not None:
            sizes[place.tp_axis] = -(-sizes[place.tp_axis] // tp)
        total += math.prod(sizes) * (layers if place.stacked else 1)
    return total


def pipeline_stages(shape: NemotronShape, topology: Topology) -> list[range]:
    """The layers of each pipeline stage. Raises TopologyError if they cannot be cut like this."""
    ends = {"first": topology.first_stage_layers, "last": topology.last_stage_layers}
    return [chunks[0] for chunks in stage_layers(shape.num_layers, topology.pp, **ends)]


def stage_plan(
    config: RunConfig, models: Sequence[ModelPlan], dtype: str, stage: int, optimizer_shards: int
) -> StagePlan:
    """The largest of the models in each phase: only one is in memory at a time."""
    topology, item = config.topology, ITEM_BYTES[dtype]
    ends = {"first": stage == 0, "last": stage == topology.pp - 1}
    layers = [len(pipeline_stages(m.shape, topology)[stage]) for m in models]
    held = [rank_parameters(m.shape, topology.tp, n, **ends, reward=m.reward) for n, m in zip(layers, models)]
    trained = [n for n, m in zip(held, models) if m.role.startswith("train")]
    policy = models[0].shape
    per_token = 2 * policy.num_query_groups // topology.tp * policy.kv_channels * layers[0]
    return StagePlan(
        stage=stage,
        parameters=max(held),
        weights=max(held) * item,
        training=int(max(trained, default=0) * (GRADIENT_BYTES[dtype] + OPTIMIZER_BYTES[dtype] / optimizer_shards)),
        kv_cache=config.generate.slots * policy.seq_length * per_token * item,
        read=tuple(map(max, zip(*(m.loading.stage(stage) for m in models)))),
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
    return (a.parameters, a.training, a.kv_cache, a.read) == (b.parameters, b.training, b.kv_cache, b.read)
