"""What a run would take, from metadata alone: ranks, rows, tokens, bytes and memory. No torch, under a second.

The counts are upper bounds that follow from the settings; activations and the libraries themselves come on
top of the memory told here.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass, field
from pathlib import Path

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.names import tensor_places
from nemo_sdg.checkpoints.survey import survey
from nemo_sdg.config import RunConfig, fingerprint, identity
from nemo_sdg.console import Console
from nemo_sdg.errors import CheckpointError, ConfigError, TopologyError
from nemo_sdg.models.shapes import NemotronShape, sizes
from nemo_sdg.resources import resolve
from nemo_sdg.session import world_size

ITEM_BYTES = {"fp64": 8, "fp32": 4, "bf16": 2}
GRADIENT_BYTES = {"fp64": 8, "fp32": 4, "bf16": 4}
"""Per trained parameter: gradients of bf16 weights are summed in fp32."""
OPTIMIZER_BYTES = {"fp64": 16, "fp32": 8, "bf16": 12}
"""Per trained parameter: Adam's two moments, and the fp32 master weight of a bf16 one."""
_COUNT_AT_MOST = 1 << 27
"""Files up to this many bytes are counted line by line; the rows of a larger one are estimated."""


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


@dataclass
class Plan:
    """A run before it starts."""

    name: str
    fingerprint: str
    seed: int
    rounds: int
    tp: int
    pp: int
    dp: int
    dtype: str
    prompts: int | None
    """Prompts of one round; None where there is no file to count."""
    exact: bool
    """Whether the prompts were counted (true) or estimated from the size of the file."""
    responses: int
    response_tokens: int
    training_tokens: dict[str, int]
    models: list[ModelPlan]
    stages: list[StagePlan]
    notes: list[str] = field(default_factory=list)

    @property
    def ranks(self) -> int:
        return self.tp * self.pp * self.dp

    def bytes_to_read(self) -> int:
        """Bytes of weights that one replica reads in round 0: each shard once, copies once per rank."""
        return sum(
            m.stored_bytes * sum(self.tp * rank_parameters(m.shape, self.tp, self.pp, s, m.reward) for s in range(self.pp))
            for m in self.models
        )

    def _rows(self) -> str:
        if self.prompts is None:
            return "as many prompts as there will be"
        counts = f"{self.prompts:,} prompts, {self.responses:,} responses, at most {self.response_tokens:,} tokens generated"
        return counts if self.exact else f"about {counts}"

    def show(self, console: Console) -> None:
        """Prints the plan: what will be done first, then what each rank must hold."""
        training = ", ".join(f"{kind} {count:,} tokens" for kind, count in self.training_tokens.items()) or "none"
        console.say(f"plan of {self.name}: {self.rounds} rounds, seed {self.seed}, fingerprint {self.fingerprint}")
        console.say(f"  ranks     {self.ranks} = tp {self.tp} x pp {self.pp} x dp {self.dp}, {self.dtype}")
        console.say(f"  a round   {self._rows()}")
        console.say(f"  training  at most, in a round: {training}")
        for model in self.models:
            missing = "" if model.present else "  (not here; sizes by name)"
            console.say(f"  {model.role:<9} {model.parameters:,} parameters  {model.where}{missing}")
        console.say(f"  to read   {bytes_text(self.bytes_to_read())} of weights per replica, every weight once per shard")
        rows = [
            (label, f"{s.parameters:,}", *(bytes_text(n) for n in (s.weights, s.training, s.kv_cache)))
            for label, s in _merged(self.stages)
        ]
        columns = ("stage", "parameters", "weights", "gradients+optimizer", "KV cache at most")
        console.table("  memory per rank, without activations", columns, rows)
        for note in self.notes:
            console.say(f"  note: {note}")


def make(config: RunConfig, *, world: int | None = None, files: bool = True) -> Plan:
    """The plan of a config.

    Args:
        world: ranks of the launch; by default WORLD_SIZE, or as many as the topology asks for.
        files: the model folders and the prompts must be there; without it, a recipe that is named like a
            known size is planned from that.

    Raises:
        TopologyError: TP or PP does not divide the model, or the ranks do not fill the topology.
        CheckpointError, ConfigError: a folder or file that the run needs is not there or not whole.
    """
    topology = config.topology
    if world is None:
        world = world_size(topology)
    dp = replicas(config, world)
    _check_batches(config, dp)
    models = _models(config, files)
    for model in models:
        model.shape.check_topology(topology.tp, topology.pp)
    gpu = os.path.exists("/dev/nvidia0")
    dtype = config.models.dtype or ("bf16" if gpu else "fp32")
    prompts, exact, notes = _prompts(config, files)
    responses = (prompts or 0) * config.generate.samples
    kinds = {kind: getattr(config, kind) for kind in ("sft", "reward")}
    return Plan(
        name=config.run.name,
        fingerprint=fingerprint(identity(config)),
        seed=config.run.seed,
        rounds=config.run.rounds,
        tp=topology.tp,
        pp=topology.pp,
        dp=dp,
        dtype=dtype,
        prompts=prompts,
        exact=exact,
        responses=responses,
        response_tokens=responses * min(config.generate.max_tokens, models[0].shape.seq_length),
        training_tokens={
            kind: s.steps * s.global_batch_size * min(s.max_length, models[0].shape.seq_length)
            for kind, s in kinds.items()
            if s.enabled
        },
        models=models,
        # On GPUs the replicas share Megatron's distributed optimizer; bf16 is not meant for anything else.
        stages=[_stage(config, models, dtype, stage, dp if gpu or dtype == "bf16" else 1) for stage in range(topology.pp)],
        notes=notes,
    )


def replicas(config: RunConfig, world: int) -> int:
    """Data-parallel replicas in `world` ranks. Raises TopologyError where they do not fill the topology."""
    topology = config.topology
    model = topology.tp * topology.pp
    dp, rest = divmod(world, model)
    if rest or dp == 0 or topology.dp not in (None, dp):
        asked = f"tp {topology.tp} x pp {topology.pp}" + (f" x dp {topology.dp}" if topology.dp else "")
        raise TopologyError(
            "the ranks of this launch do not fill the topology",
            where="topology",
            found=f"{world} ranks for {asked}",
            expected=f"{model * topology.dp} ranks" if topology.dp else f"a multiple of {model}",
            way_out="launch another number of ranks, or change topology.tp, topology.pp and topology.dp",
        )
    return dp


def _check_batches(config: RunConfig, dp: int) -> None:
    for kind in ("sft", "reward"):
        settings = getattr(config, kind)
        if settings.enabled and settings.global_batch_size % (settings.micro_batch_size * dp):
            raise TopologyError(
                "the global batch cannot be cut into whole micro batches",
                where=f"{kind}.global_batch_size",
                found=settings.global_batch_size,
                expected=f"a multiple of {kind}.micro_batch_size x {dp} replicas = {settings.micro_batch_size * dp}",
                way_out=f"set {kind}.global_batch_size or {kind}.micro_batch_size",
            )


def rank_parameters(shape: NemotronShape, tp: int, pp: int, stage: int, reward: bool = False) -> int:
    """Parameters that one rank of a pipeline stage holds: shards of what TP cuts, copies of the norms."""
    total = 0
    for place in tensor_places(shape, reward=reward).values():
        if (place.stage == "first" and stage > 0) or (place.stage == "last" and stage < pp - 1):
            continue
        count = 1
        for size in place.shape:
            count *= size
        total += count // (tp if place.tp_axis is not None else 1) // (pp if place.stacked else 1)
    return total


def bytes_text(count: float) -> str:
    """A size for people: 1024 bytes are a KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _stage(config: RunConfig, models: list[ModelPlan], dtype: str, stage: int, optimizer_shards: int) -> StagePlan:
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


def _models(config: RunConfig, files: bool) -> list[ModelPlan]:
    """The models in the order in which round 0 reads them."""
    paths = config.models
    wanted = [("generate", paths.instruct, False), ("score", paths.reward, True)]
    if config.sft.enabled:
        wanted.append(("train sft", paths.base if config.sft.start_from == "base" else paths.instruct, False))
    if config.reward.enabled:
        wanted.append(("train rm", paths.base if config.reward.start_from == "base" else paths.reward, True))
    return [_model(config, role, where, reward, files) for role, where, reward in wanted]


def _model(config: RunConfig, role: str, where: str, reward: bool, files: bool) -> ModelPlan:
    try:
        folder = ModelFolder.open(where)
    except (CheckpointError, ConfigError):
        if files or config.run.name not in sizes() or resolve(where).exists():
            raise
        return ModelPlan(role, where, sizes()[config.run.name], reward, 2, present=False)
    if not role.startswith("train"):
        folder.require(reward=reward)
    return ModelPlan(role, where, folder.shape, reward, survey(folder, reward=reward))


def _prompts(config: RunConfig, files: bool) -> tuple[int | None, bool, list[str]]:
    """(prompts of a round, counted exactly, notes)."""
    for key, value in (
        ("data.prompts", config.data.prompts),
        ("data.helpsteer2", config.data.helpsteer2),
        ("evaluate.exact_match", config.evaluate.exact_match),
        ("evaluate.helpsteer2", config.evaluate.helpsteer2),
    ):
        if value is not None and files and not resolve(value).is_file():
            raise ConfigError("there is no such file", where=key, found=value, way_out=f"set {key} to a .jsonl file")
    path, taken = resolve(config.data.prompts), config.data.prompts_per_round
    if not path.is_file():
        return taken, taken is not None, [f"{config.data.prompts} is not here, so its rows are not counted"]
    rows, exact = count_rows(path)
    return (rows, exact, []) if taken is None or rows == 0 else (taken, True, [])


def count_rows(path: Path) -> tuple[int, bool]:
    """(rows of a .jsonl or .jsonl.gz file, whether each was counted); blank lines are no rows."""
    size = path.stat().st_size
    whole = size <= (_COUNT_AT_MOST >> 4 if path.suffix == ".gz" else _COUNT_AT_MOST)
    with open(path, "rb") as raw:
        stream = gzip.open(raw) if path.suffix == ".gz" else raw
        try:
            if whole:
                return sum(1 for line in stream if line.strip()), True
            lines = stream.readlines(1 << 22)
            return max(1, round(len(lines) * size / max(1, raw.tell()))), False
        except (OSError, EOFError) as error:
            raise ConfigError("cannot read the file", where=path, found=str(error), way_out="write it again") from error


def _merged(stages: list[StagePlan]) -> list[tuple[str, StagePlan]]:
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
