"""What one rank holds in each phase, in parameters and bytes, from the table of tensors alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_sdg.checkpoints.names import HEAD, adapter_places, architecture, tensor_places
from nemo_sdg.checkpoints.tensors import Contents
from nemo_sdg.config import Lora, RunConfig, Training
from nemo_sdg.engine.budget import Budget, make_budget
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.models.stages import stage_layers
from nemo_sdg.parallel.topology import Grid
from nemo_sdg.plan import activations, buffers
from nemo_sdg.plan.activations import MicroBatch, Slice
from nemo_sdg.plan.loading import Loading
from nemo_sdg.plan.units import bytes_text

GRADIENT_BYTES = {"fp64": 8, "fp32": 4, "bf16": 4}
"""Per trained parameter: gradients of bf16 weights are summed in fp32."""
OPTIMIZER_BYTES = {"fp64": 16, "fp32": 8, "bf16": 12}
"""Per trained parameter: Adam's two moments, and the fp32 master weight of a bf16 one."""


@dataclass(frozen=True)
class StagePlan:
    """What one phase takes on a rank of a pipeline stage, in bytes."""

    stage: int
    parameters: int
    weights: int
    training: int
    kv_cache: int
    read: tuple[int, int, int]
    """Bytes, files and byte ranges that the rank reads most of to load the model."""
    gradients: int = 0
    optimizer: int = 0
    """Its share of the optimizer's state, with the main weights of half precisions; `training` is both."""
    activations: int = 0
    """What forward passes keep for their backward passes."""
    between: int = 0
    """Hidden states that came from the stage before or went to the next, until their backward pass."""
    buffers: int = 0
    """What one pass holds for a moment, at most."""
    loading: int = 0
    """What reading the model holds beside the weights, before there is anything else."""

    @property
    def held(self) -> int:
        """What stays from step to step."""
        return self.weights + self.training + self.kv_cache

    @property
    def total(self) -> int:
        """The most at one time."""
        return max(self.weights + self.loading, self.held + self.activations + self.between + self.buffers)

    def cells(self) -> tuple[str, ...]:
        """For the table: to read, files, ranges, parameters, weights, training, KV cache."""
        reads = bytes_text(self.read[0]), f"{self.read[1]:,}", f"{self.read[2]:,}"
        return *reads, f"{self.parameters:,}", *map(bytes_text, (self.weights, self.training, self.kv_cache))


@dataclass(frozen=True)
class ModelPlan:
    """One model that a run reads, on the ranks of its phase."""

    role: str
    """generate, score, train sft or train rm; further generators are generate 2, generate 3."""
    where: str
    shape: NemotronShape
    reward: bool
    grid: Grid
    loading: Loading
    """What each rank reads of it."""
    stages: list[StagePlan]
    contents: Contents
    """What its folder holds, or would hold."""
    chunks: list[list[range]]
    """The layers of each chunk of each pipeline stage."""
    note: str = ""
    """What of it is not here."""

    @property
    def aside(self) -> str:
        return f"  ({self.note})" if self.note else ""

    @property
    def parameters(self) -> int:
        return rank_parameters(self.shape, 1, self.shape.num_layers, first=True, last=True, reward=self.reward)

    def on(self, rank: int) -> StagePlan | None:
        """What it takes on a rank of the job; None where it is not."""
        if rank not in self.grid.ranks:
            return None
        return self.stages[(rank - self.grid.first) // (self.grid.tp * self.grid.dp)]


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


def adapter_parameters(shape: NemotronShape, tp: int, layers: int, settings: Lora) -> int:
    """Parameters of the low-rank adapters of so many layers on one rank: shards of B or A, copies of the other."""
    total = 0
    for target in settings.targets:
        for place in adapter_places(shape, 0, target, settings.rank):
            sizes = [-(-size // tp) if axis == place.tp_axis else size for axis, size in enumerate(place.shape)]
            total += math.prod(sizes)
    return total * layers


def stage_chunks(shape: NemotronShape, grid: Grid, virtual_stages: int = 1) -> list[list[range]]:
    """The layers of each chunk of each pipeline stage. Raises TopologyError if they cannot be cut like this."""
    ends = {"first": grid.first_stage_layers, "last": grid.last_stage_layers}
    return stage_layers(shape.num_layers, grid.pp, **ends, vp=virtual_stages)


def stage_plans(
    config: RunConfig,
    role: str,
    shape: NemotronShape,
    reward: bool,
    grid: Grid,
    loading: Loading | None,
    dtype: str,
    gpu: bool,
    stored: str | None = None,
) -> list[StagePlan]:
    """What a model takes on the ranks of each stage of its grid.

    Args:
        loading: what each rank reads; None where nobody asks.
        stored: dtype of the checkpoint; None is that of the run.
    Raises:
        ConfigError: generate.kv_cache_bytes does not hold a row.
    """
    layers = [sum(map(len, chunks)) for chunks in stage_chunks(shape, grid)]
    settings = training_of(config, role)
    lora = settings.lora if settings is not None else Lora()
    part = _slice(config, shape, reward, grid, dtype, gpu, lora, trains=settings is not None)
    answers = role.startswith(("generate", "judge"))  # all run as `generate` says
    budget = _budget(config, shape, grid, layers, part.item) if answers else None
    # On GPUs the replicas share Megatron's distributed optimizer.
    shards = grid.dp if gpu else 1
    made = []
    for stage in range(grid.pp):
        ends = {"first": stage == 0, "last": stage == grid.pp - 1}
        held = trained = rank_parameters(shape, grid.tp, layers[stage], **ends, reward=reward)
        if lora.rank is not None:
            trained = adapter_parameters(shape, grid.tp, layers[stage], lora)
            held += trained
            # A reward head is trained beside them as a whole.
            trained += math.prod(architecture(shape)[HEAD].shape) // grid.tp if reward and ends["last"] else 0
        more = {"buffers": buffers.pass_bytes(part, max(config.score.pack_tokens, shape.seq_length))}
        if budget is not None:
            more = {"buffers": _answering(config, part, budget.slots, stage == grid.pp - 1)}
        if settings is not None:
            gradients, optimizer = trained * GRADIENT_BYTES[dtype], trained * OPTIMIZER_BYTES[dtype] // shards
            pairs = role == "train preference"
            more = _learning(config, settings, part, grid, stage, layers[stage], gpu, pairs)
            more |= {"gradients": gradients, "optimizer": optimizer}
        moment = more["buffers"] + more.get("activations", 0)
        more["buffers"] += round(buffers.fragments(config.hardware, gpu) * moment)
        made.append(
            StagePlan(
                stage=stage,
                parameters=held,
                weights=held * part.item,
                training=more.get("gradients", 0) + more.get("optimizer", 0),
                kv_cache=budget.bytes(stage) if budget is not None else 0,
                read=loading.stage(stage) if loading is not None else (0, 0, 0),
                loading=buffers.loading_bytes(held * part.item, stored in (None, dtype), gpu),
                **more,
            )
        )
    return made


def training_of(config: RunConfig, role: str) -> Training | None:
    """The settings that a model of this role is trained by; None of one that is not trained."""
    by_role = {"train sft": config.sft, "train preference": config.preference, "train rm": config.reward}
    return by_role.get(role)


def _slice(
    config: RunConfig, shape: NemotronShape, reward: bool, grid: Grid, dtype: str, gpu: bool, lora: Lora, trains: bool
) -> Slice:
    return Slice(
        shape, dtype, grid.tp, config.topology.sequence_parallel and grid.tp > 1 and trains, reward,
        te=gpu and config.models.spec == "te", adapters=(lora.rank or 0) * len(lora.targets),
    )  # fmt: skip


def _budget(config: RunConfig, shape: NemotronShape, grid: Grid, layers: list[int], item: int) -> Budget:
    settings = config.generate
    return make_budget(
        groups=shape.num_query_groups // grid.tp,
        channels=shape.kv_channels,
        context=shape.seq_length,
        stage_layers=layers,
        item_bytes=item,
        slots=settings.slots,
        prefill_tokens=settings.prefill_tokens,
        kv_cache_bytes=settings.kv_cache_bytes,
    )


def _answering(config: RunConfig, part: Slice, slots: int, last: bool) -> int:
    """The wider of a prefill and a decode step of one lane."""
    prefill = buffers.pass_bytes(part, config.generate.prefill_tokens)
    decode = buffers.pass_bytes(part, slots) + buffers.scores_bytes(part, slots, part.shape.seq_length)
    return max(prefill, decode) + (buffers.choosing_bytes(part, slots) if last else 0)


def _learning(
    config: RunConfig, settings: Training, part: Slice, grid: Grid, stage: int, layers: int, gpu: bool, pairs: bool
) -> dict[str, int]:
    """The activations, hidden states between stages and buffers of a training step, as `StagePlan` has them."""
    pairs = pairs or (part.reward and config.reward.pairs)
    batch = MicroBatch.of(settings, pairs, part.shape.seq_length)
    chunks = config.topology.virtual_stages if grid.pp > 1 else 1
    micro_batches = max(1, settings.global_batch_size // (grid.dp * settings.micro_batch_size))
    step = {"pp": grid.pp, "stage": stage, "micro_batches": micro_batches, "chunks": chunks}
    return {
        "activations": activations.stage_bytes(part, batch, layers=layers, **step),
        "between": activations.between_bytes(part, batch, **step, gpu=gpu),
        "buffers": buffers.backward_bytes(part, batch, last=stage == grid.pp - 1),
    }


@dataclass(frozen=True)
class Peak:
    """The most that a rank holds at a time, in bytes."""

    working: int
    """While it generates and scores."""
    training: int
    waiting: int
    """Of the models that wait in host memory meanwhile; 0 where none does."""


def peak(
    models: Sequence[ModelPlan], ranks: int, placement: str, gpu: bool, others: Sequence[StagePlan] = ()
) -> Peak:
    """The fullest rank: `in_turn` holds the largest model, the others all that a rank has a part in, one generator at a
    time.

    Args:
        others: fits whose start the run itself makes, so that none of `models` is theirs.
    """
    working = waiting = 0
    training = max((stage.total for stage in others), default=0)
    together = sum if placement != "in_turn" else max
    for rank in range(ranks):
        here = {model.role: stage for model in models if (stage := model.on(rank)) is not None}
        # The judge and other generators take the policy's place.
        answering = [stage for role, stage in here.items() if role.startswith(("generate", "judge"))]
        kinds = [kind for kind in (answering, [here["score"]] if "score" in here else []) if kind]
        working = max(working, together([max(stage.total for stage in kind) for kind in kinds] or [0]))
        training = max(training, *(stage.total for role, stage in here.items() if role.startswith("train")), 0)
        if gpu:  # for training all leave the device; one of each kind waits (`engine.residents`)
            waiting = max(waiting, sum(max(stage.weights for stage in kind) for kind in kinds))
    return Peak(working, training, waiting)


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
