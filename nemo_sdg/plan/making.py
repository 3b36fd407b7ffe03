"""A plan is made: topology, models, rows and tokens settled, and from them memory, disk and time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nemo_sdg.config import RunConfig, Training, fingerprint, identity
from nemo_sdg.config.starting import GROUPS, begins_with
from nemo_sdg.console import Console
from nemo_sdg.parallel.topology import Grids, check_global_batch, grids, ranks_wanted
from nemo_sdg.plan import notes as words
from nemo_sdg.plan.course import ROLES, Course, Took
from nemo_sdg.plan.disk import Disk, disk_of
from nemo_sdg.plan.machine import CPU, Machine, machine_of
from nemo_sdg.plan.memory import ModelPlan, Peak, StagePlan, peak
from nemo_sdg.plan.models import model_plans
from nemo_sdg.plan.placements import Placement, placements
from nemo_sdg.session import under_torchrun
from nemo_sdg.store.fits import fits
from nemo_sdg.synthesis.revision import Request


@dataclass
class Plan:
    """A run before it starts."""

    name: str
    fingerprint: str
    seed: int
    rounds: int
    grids: Grids
    """Of the job as training sees it, and of each phase."""
    placement: str
    dtype: str
    prompts: int | None
    """Prompts of one round; None where there is no file to count."""
    exact: bool
    """Whether the prompts were counted (true) or estimated from the size of the file."""
    responses: int
    response_tokens: int
    training_tokens: dict[str, int]
    target: str | None
    """What `select.target` asks for, in words."""
    models: list[ModelPlan]
    peak: Peak
    notes: list[str] = field(default_factory=list)
    fits: dict[str, list[StagePlan]] = field(default_factory=dict)
    """What each fit takes on each pipeline stage, by the name of its phase; also those that go on from what the run itself
    has made, which `models` lack."""
    machine: Machine | None = None
    course: Course | None = None
    """None where no model of the run is on its own ranks."""

    @property
    def ranks(self) -> int:
        return self.grids.train.size

    def bytes_to_read(self) -> int:
        """Bytes of weights that one replica reads in round 0: each shard once, copies once per rank."""
        return sum(rank.num_bytes for model in self.models for rank in model.loading.ranks)

    def ranges(self) -> Iterator[dict[str, Any]]:
        """Each stretch of a file that a rank of a replica reads; see `plan.loading`."""
        for model in self.models:
            for row in model.loading.ranges():
                yield {"model": model.role, **row}

    @cached_property
    def parts(self) -> list[Took]:
        """The parts of a round with the time that each is estimated to take."""
        return [] if self.course is None else self.course.round()

    @cached_property
    def once(self) -> list[Took]:
        """The same of what is done once, before the first round or in it."""
        return [] if self.course is None else self.course.once()

    @cached_property
    def seconds(self) -> float:
        """Of the whole run, without `notes.not_in_the_time`."""
        first = self.machine.start_s + sum(part.seconds for part in self.once)
        return first + self.rounds * sum(part.seconds for part in self.parts)

    @cached_property
    def disk(self) -> Disk | None:
        return None if self.course is None else disk_of(self.course)

    @property
    def phases(self) -> list[tuple[str, StagePlan]]:
        """Each phase with what it takes on its fullest rank."""
        engine = {model.role: model.stages for model in self.models if not model.role.startswith("train")}
        return [(name, max(stages, key=lambda s: s.total)) for name, stages in {**engine, **self.fits}.items()]

    @property
    def fits_in(self) -> bool:
        """Whether the fullest rank has the memory; true on a CPU, where nobody knows what else runs there."""
        return not self.machine.gpu or max(self.peak.working, self.peak.training) <= self.machine.usable_bytes

    @cached_property
    def placements(self) -> tuple[list[Placement], dict[str, Placement | None]]:
        """See `plan.placements`; on the nodes of `hardware.nodes`, or as many as the run's ranks fill."""
        if self.course is None:
            return [], {}
        nodes = self.course.config.hardware.nodes
        return placements(self.course, self.ranks if nodes is None else nodes * self.machine.ranks_per_node)

    def show(self, console: Console, details: bool = False) -> None:
        """Prints the plan: what will be done and what it takes; with details where each figure comes from."""
        from nemo_sdg.plan import showing

        showing.show(self, console, details)


def make(config: RunConfig, *, world: int | None = None, files: bool = True) -> Plan:
    """The plan of a config.

    Args:
        world: ranks of the launch; by default WORLD_SIZE, or as many as the topologies ask for.
        files: the model folders and the prompts must be there, as for a run on this machine; without it, a recipe that is
            named like a known size is planned from that, and a run in bf16 for GPUs.

    Raises:
        TopologyError: TP or PP does not divide the model, or the ranks do not fill the topology.
        CheckpointError, ConfigError: a folder or file that the run needs is not there or not whole.
    """
    if world is None:
        world = int(os.environ["WORLD_SIZE"]) if under_torchrun() else ranks_wanted(config)
    laid = grids(config, world)
    turns = laid.train.pp if config.topology.virtual_stages > 1 else 1
    for group, settings in fitted(config).items():
        check_global_batch(settings, laid.train.dp, group, turns)
    gpu = _on_gpus(config, files)
    dtype = config.models.dtype or ("bf16" if gpu else "fp32")
    machine = machine_of(config, dtype, world, gpu)
    if config.revise.passes:
        Request(config.revise.request)  # a template that cannot be filled in is refused now
    models = model_plans(config, laid, dtype, gpu, files)
    if files:
        words.require_files(config)
        if config.select.pii != "off" and config.select.pii_engine == "presidio":
            from nemo_sdg.quality import presidio

            presidio.require(config.select.pii_model)  # selection would say so, when everything is generated
    prompts = words.prompts_of(config, files)
    responses = (prompts.count or 0) * (config.generate.samples + sum(config.generate.others.values()))
    context = {model.role: model.shape.seq_length for model in models}
    most = config.generate.max_tokens
    prompt_tokens = max(1.0, prompts.mean_bytes / config.expect.bytes_per_token)
    course = Course(config, laid, dtype, machine, models, prompts.count, prompt_tokens) if models else None
    trained = {} if course is None else {ROLES[task]: course.stages_of(task) for task in course.fits}
    return Plan(
        name=config.run.name,
        fingerprint=fingerprint(identity(config)),
        seed=config.run.seed,
        rounds=config.run.rounds,
        grids=laid,
        placement=config.models.placement,
        dtype=dtype,
        prompts=prompts.count,
        exact=prompts.exact,
        responses=responses,
        response_tokens=responses * min(most, context.get("generate", most)),
        training_tokens=_training_tokens(config, context),
        target=words.target_note(config),
        models=models,
        peak=peak(models, world, config.models.placement, gpu, [stage for stages in trained.values() for stage in stages]),
        notes=words.first_notes(config) + prompts.notes + words.elsewhere_notes(config),
        fits=trained,
        machine=machine,
        course=course,
    )


def _on_gpus(config: RunConfig, files: bool) -> bool:
    """Whether the run is planned for GPUs: as its settings name, as this machine has, or as bf16 is meant for."""
    if config.hardware.gpu is not None:
        return config.hardware.gpu != CPU
    return os.path.exists("/dev/nvidia0") or (config.models.dtype == "bf16" and not files)


def fitted(config: RunConfig) -> dict[str, Training]:
    """The settings of all that is trained, by their group."""
    first = [GROUPS[kind] for kind in begins_with(config)]
    return {group: getattr(config, group) for group in (*first, *(fit.task for fit in fits(config)))}


def _training_tokens(config: RunConfig, context: dict[str, int]) -> dict[str, int]:
    """Tokens that a round trains on at most, by kind; `context` is how many a model takes, by role."""
    tokens: dict[str, int] = {}
    for fit in fits(config):
        settings = fit.settings(config)
        longest = min(settings.max_length, context.get(ROLES[fit.task], context.get("train sft", settings.max_length)))
        sequences = settings.global_batch_size * (2 if fit.task == "preference" else 1)
        tokens[fit.task] = tokens.get(fit.task, 0) + settings.steps * sequences * longest
    return tokens
