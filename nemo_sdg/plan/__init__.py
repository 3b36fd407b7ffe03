"""What a run would take, from metadata alone: ranks, rows, tokens, bytes and memory. No torch, under a second.

The counts are upper bounds that follow from the settings; activations and the libraries themselves come on
top of the memory told here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.release_writer import planned
from nemo_sdg.checkpoints.survey import any_weights, survey
from nemo_sdg.checkpoints.tensors import Contents
from nemo_sdg.config import RunConfig, fingerprint, identity
from nemo_sdg.console import Console
from nemo_sdg.errors import CheckpointError, ConfigError
from nemo_sdg.models.shapes import sizes
from nemo_sdg.parallel.topology import check_global_batch, data_parallel_size
from nemo_sdg.plan.counting import count_rows
from nemo_sdg.plan.loading import Loading, loading
from nemo_sdg.plan.memory import ModelPlan, StagePlan, merged, pipeline_stages, stage_plan
from nemo_sdg.plan.units import bytes_text
from nemo_sdg.resources import resolve
from nemo_sdg.session import world_size


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
        return sum(rank.num_bytes for model in self.models for rank in model.loading.ranks)

    def _rows(self) -> str:
        if self.prompts is None:
            return "as many prompts as there will be"
        counts = (
            f"{self.prompts:,} prompts, {self.responses:,} responses, at most {self.response_tokens:,} tokens generated"
        )
        return counts if self.exact else f"about {counts}"

    def _proof(self) -> str:
        """In words what `plan.loading` has checked; without it there is no plan."""
        copied = max(model.loading.copied_bytes for model in self.models)
        copies = f" ({bytes_text(copied)} of norms by each of {self.tp} TP ranks)" if self.tp > 1 else ""
        return f"every byte of every tensor is read exactly once per replica, by the rank that holds it{copies}"

    def ranges(self) -> Iterator[dict[str, Any]]:
        """Each stretch of a file that a rank of a replica reads; see `plan.loading`."""
        for model in self.models:
            for row in model.loading.ranges():
                yield {"model": model.role, **row}

    def show(self, console: Console) -> None:
        """Prints the plan: what will be done first, then what each rank must hold."""
        training = ", ".join(f"{kind} {count:,} tokens" for kind, count in self.training_tokens.items()) or "none"
        console.say(f"plan of {self.name}: {self.rounds} rounds, seed {self.seed}, fingerprint {self.fingerprint}")
        console.say(f"  ranks     {self.ranks} = tp {self.tp} x pp {self.pp} x dp {self.dp}, {self.dtype}")
        console.say(f"  a round   {self._rows()}")
        console.say(f"  training  at most, in a round: {training}")
        columns = ("model", "parameters", "bytes to read", "files", "folder")
        rows = [(m.role, f"{m.parameters:,}", *m.loading.totals(), f"{m.where}{m.aside}") for m in self.models]
        console.table(f"  weights: {bytes_text(self.bytes_to_read())} to read per replica in round 0", columns, rows)
        console.say(f"  {self._proof()}")
        rows = [
            (label, *s.reads(), f"{s.parameters:,}", *(bytes_text(n) for n in (s.weights, s.training, s.kv_cache)))
            for label, s in merged(self.stages)
        ]
        columns = (
            "stage",
            "to read",
            "files",
            "byte ranges",
            "parameters",
            "weights",
            "gradients+optimizer",
            "KV cache",
        )
        console.table(
            "  each rank of a stage: the most that one model or phase takes, without activations", columns, rows
        )
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
    dp = data_parallel_size(topology, world)
    for kind, settings in (("sft", config.sft), ("reward", config.reward)):
        if settings.enabled:
            check_global_batch(settings, dp, kind)
    models = _models(config, files)
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
        stages=[
            stage_plan(config, models, dtype, stage, dp if gpu or dtype == "bf16" else 1)
            for stage in range(topology.pp)
        ],
        notes=notes,
    )


def _models(config: RunConfig, files: bool) -> list[ModelPlan]:
    """The models in the order in which round 0 reads them."""
    paths = config.models
    wanted = [("generate", paths.instruct, False), ("score", paths.reward, True)]
    if config.sft.enabled:
        wanted.append(("train sft", paths.base if config.sft.start_from == "base" else paths.instruct, False))
    if config.reward.enabled:
        wanted.append(("train rm", paths.base if config.reward.start_from == "base" else paths.reward, True))
    seen: dict[tuple[str, bool], Loading] = {}
    return [_model(config, role, where, reward, files, seen) for role, where, reward in wanted]


def _model(
    config: RunConfig, role: str, where: str, reward: bool, files: bool, seen: dict[tuple[str, bool], Loading]
) -> ModelPlan:
    contents, note = _contents(config, role, where, reward, files)
    topology, shape = config.topology, contents.shape
    shape.check_topology(
        topology.tp,
        topology.pp,
        first_stage_layers=topology.first_stage_layers,
        last_stage_layers=topology.last_stage_layers,
    )
    if (where, reward) not in seen:
        places = contents.places(reward=reward)
        seen[where, reward] = loading(contents, places, topology.tp, pipeline_stages(shape, topology))
    return ModelPlan(role, where, shape, reward, seen[where, reward], note)


def _contents(config: RunConfig, role: str, where: str, reward: bool, files: bool) -> tuple[Contents, str]:
    """What a model's folder holds, and a note on what of it is not here."""
    try:
        folder = ModelFolder.open(where, metadata_only=not files)
    except (CheckpointError, ConfigError):
        if files or config.run.name not in sizes() or resolve(where, metadata_only=True).exists():
            raise
        # Not here yet: the released layout of a model of that name.
        shape = sizes()[config.run.name]
        head = reward and role != "train rm"
        return planned(shape, resolve(where), reward=head), "not here; planned from the released layout"
    if role != "train rm":  # a reward model may start from a language model, with a fresh head
        folder.require(reward=reward)
    if not files and not any_weights(folder):
        return folder.contents, "metadata alone, no weights"
    survey(folder)
    return folder.contents, ""


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
