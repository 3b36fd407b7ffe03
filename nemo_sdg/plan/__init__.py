"""What a run would take, from metadata alone: ranks, rows, tokens, bytes and memory. No torch, under a second.

The counts are upper bounds that follow from the settings; activations and the libraries themselves come on
top of the memory told here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from nemo_sdg import resources
from nemo_sdg.config import RunConfig, Training, fingerprint, identity
from nemo_sdg.config.endpoints import other_server
from nemo_sdg.config.starting import GROUPS, begins_with
from nemo_sdg.config.judging import checks_responses, compares, has_judge, judge_backend, judge_endpoint, judge_model
from nemo_sdg.console import Console
from nemo_sdg.errors import ConfigError, UserError
from nemo_sdg.parallel.topology import PHASES, Grids, check_global_batch, grids, ranks_wanted, remote
from nemo_sdg.plan.counting import count_rows
from nemo_sdg.plan.memory import ModelPlan, Peak, merged, peak
from nemo_sdg.plan.models import model_plans
from nemo_sdg.plan.units import bytes_text
from nemo_sdg.records import Prompt, each_row, row_files
from nemo_sdg.session import under_torchrun
from nemo_sdg.stages.target import most_candidates
from nemo_sdg.store.fits import POLICY, REWARD, fits
from nemo_sdg.synthesis import own_checks
from nemo_sdg.synthesis.plans import Plan as Synthesising
from nemo_sdg.synthesis.revision import Request

_LOOKED_AT = 1000
"""Rows of data.prompts that are parsed for the plan; the stage that reads them all says what stands further below."""


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

    @property
    def ranks(self) -> int:
        return self.grids.train.size

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
        copied, tp = max((model.loading.copied_bytes, model.grid.tp) for model in self.models)
        copies = f" ({bytes_text(copied)} of norms by each of {tp} TP ranks)" if tp > 1 else ""
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
        console.say(f"  ranks     {self.grids.train}, {self.dtype}")
        for phase in PHASES:
            grid = getattr(self.grids, phase)
            if any(model.role == phase for model in self.models) and grid != self.grids.train:
                console.say(f"  {phase:<9} {grid}, ranks {grid.ranks[0]} to {grid.ranks[-1]}")
        console.say(f"  a round   {self._rows()}")
        if self.target is not None:
            console.say(f"  target    {self.target}")
        console.say(f"  training  at most, in a round: {training}")
        if self.models:
            self._show_models(console)
        for note in self.notes:
            console.say(f"  note: {note}")

    def _show_models(self, console: Console) -> None:
        columns = ("model", "parameters", "bytes to read", "files", "folder")
        rows = [(m.role, f"{m.parameters:,}", *m.loading.totals(), f"{m.where}{m.aside}") for m in self.models]
        console.table(f"  weights: {bytes_text(self.bytes_to_read())} to read per replica in round 0", columns, rows)
        console.say(f"  {self._proof()}")
        rows = [(m.role, label, *stage.cells()) for m in self.models for label, stage in merged(m.stages)]
        columns = ("phase", "stage", "to read", "files", "byte ranges", "parameters", "weights")
        columns += ("gradients+optimizer", "KV cache")
        console.table("  each rank of a phase's stage, without activations", columns, rows)
        working = f"{bytes_text(self.peak.working)} to generate and score ({self.placement})"
        parts = [working] if self.peak.working else []
        parts += [f"{bytes_text(self.peak.training)} to train"] if self.peak.training else []
        console.say(f"  memory    at most, on a rank: {', '.join(parts)}")
        if self.peak.waiting:
            console.say(f"  waiting   at most {bytes_text(self.peak.waiting)} in host memory, on a rank")


def make(config: RunConfig, *, world: int | None = None, files: bool = True) -> Plan:
    """The plan of a config.

    Args:
        world: ranks of the launch; by default WORLD_SIZE, or as many as the topologies ask for.
        files: the model folders and the prompts must be there; without it, a recipe that is named like a
            known size is planned from that.

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
    gpu = os.path.exists("/dev/nvidia0")
    dtype = config.models.dtype or ("bf16" if gpu else "fp32")
    if config.revise.passes:
        Request(config.revise.request)  # a template that cannot be filled in is refused now
    models = model_plans(config, laid, dtype, gpu, files)
    if files:
        _require_files(config)
        if config.select.pii != "off" and config.select.pii_engine == "presidio":
            from nemo_sdg.quality import presidio

            presidio.require(config.select.pii_model)  # selection would say so, when everything is generated
    prompts, exact, notes = _prompts(config, files)
    responses = (prompts or 0) * (config.generate.samples + sum(config.generate.others.values()))
    context = {model.role: model.shape.seq_length for model in models}
    most = config.generate.max_tokens
    return Plan(
        name=config.run.name,
        fingerprint=fingerprint(identity(config)),
        seed=config.run.seed,
        rounds=config.run.rounds,
        grids=laid,
        placement=config.models.placement,
        dtype=dtype,
        prompts=prompts,
        exact=exact,
        responses=responses,
        response_tokens=responses * min(most, context.get("generate", most)),
        training_tokens=_training_tokens(config, context),
        target=_target(config),
        models=models,
        peak=peak(models, world, config.models.placement, gpu),
        notes=_first(config) + notes + _elsewhere(config),
    )


def fitted(config: RunConfig) -> dict[str, Training]:
    """The settings of all that is trained, by their group."""
    first = [GROUPS[kind] for kind in begins_with(config)]
    return {group: getattr(config, group) for group in (*first, *(fit.task for fit in fits(config)))}


def _first(config: RunConfig) -> list[str]:
    """What is trained before the first round."""
    steps = {"policy": ("models.instruct", config.sft), "reward": ("models.reward", config.reward)}
    return [
        f"{steps[kind][0]} is not set: a {kind} of {config.models.base} is trained first, {steps[kind][1].steps:,} steps"
        for kind in begins_with(config)
    ]


def _training_tokens(config: RunConfig, context: dict[str, int]) -> dict[str, int]:
    """Tokens that a round trains on at most, by kind; `context` is how many a model takes, by role."""
    tokens: dict[str, int] = {}
    for fit in fits(config):
        settings = fit.settings(config)
        role = {"reward": "train rm"}.get(fit.task, f"train {fit.task}")
        longest = min(settings.max_length, context.get(role, context.get("train sft", settings.max_length)))
        sequences = settings.global_batch_size * (2 if fit.task == "preference" else 1)
        tokens[fit.task] = tokens.get(fit.task, 0) + settings.steps * sequences * longest
    return tokens


def _elsewhere(config: RunConfig) -> list[str]:
    """What others than our ranks hold."""
    servers = [name for name in config.generate.others if other_server(name, config.generate) is not None]
    notes = [f"generate also asks the server at {name}" for name in servers]
    if config.generate.others and config.models.placement != "in_turn":
        notes.append("several generators answer one after the other; their responses are scored when all are there")
    if has_judge(config):
        endpoint, _ = judge_endpoint(config)
        own = judge_model(config) or "the first policy"
        server = f"the server at {endpoint.url}" if judge_backend(config) == "endpoint" else own
        checks = "keep to the brief" if config.data.synthesis.brief is not None else "meet the checks of their prompts"
        asked = [f"whether they {checks}"] if checks_responses(config) else []
        asked += ["which of two is better"] if compares(config) else []
        notes.append(f"the judge is {server} in every round; about responses it is asked {' and '.join(asked)}")
    if config.preference.enabled:
        notes.append(
            "before it is tuned on pairs a policy goes through them once, for the log-probabilities of the reference: its"
            " weights alone are then in memory" + ("; it is what SFT has made" if config.sft.enabled else "")
        )
    trained = {fit.folder for fit in fits(config)}
    for phase, kind in (("generate", POLICY), ("score", REWARD)):
        settings = getattr(config, phase)
        if remote(config, phase):
            notes.append(f"{phase} asks the server at {settings.endpoint.url}: no model of that role is loaded here")
        elif settings.backend == "hf":
            notes.append(f"{phase} loads {config.models.reward} with transformers, whole on each rank: not counted")
        if settings.backend != "local" and kind in trained and config.run.rounds > 1:
            notes.append(f"{phase} stays with {settings.backend} in every round; what a round trains is evaluated")
    return notes


def _target(config: RunConfig) -> str | None:
    """Before anything runs nobody knows how many candidates pass; the first wave tells."""
    if config.select.target is None:
        return None
    most = [f"{most_candidates(config):,} candidates"]
    most += [f"{limit:,} {name}" for name in ("tokens", "hours") if (limit := getattr(config.budget, name)) is not None]
    return (
        f"{config.select.target:,} rows accepted in each round, wave by wave of what is above, until {' or '.join(most)};"
        " the forecast comes after the first wave"
    )


def _making(config: RunConfig, made: int, files: bool) -> str:
    """What it takes at most until the prompts are there. Raises UserError for a brief that none can be made for."""
    settings, said = config.data.synthesis, f"{made:,} prompts are made for {config.data.synthesis.brief}"
    try:
        questions = Synthesising.load(settings, seed=config.run.seed, round=0).questions()
    except UserError as error:
        if files:
            raise
        return f"{said}; what that takes is not counted: {error}"
    tokens = questions * (settings.max_tokens or config.generate.max_tokens)
    return f"{said}, which takes at most {questions:,} questions and {tokens:,} tokens in answers"


def _require_files(config: RunConfig) -> None:
    """Raises ConfigError for a file of rows that is not there, also for one that is read only when all is generated."""
    for key, value in (
        ("data.prompts", config.data.prompts),
        ("data.helpsteer2", config.data.helpsteer2),
        *(("data.sft", path) for path in config.data.sft),
        *(("data.labelled", path) for path in config.data.labelled),
        *(("data.preference", path) for path in config.data.preference),
        *((f"evaluate.{name}", path) for name, path in config.evaluate.files.items()),
        *(("select.decontaminate", path) for path in config.select.decontaminate),
        ("select.likeness", config.select.likeness),
    ):
        if value is None:
            continue
        there = [resources.resolve(value)] if key.startswith("select.") else row_files(value)
        if not all(file.is_file() for file in there):
            raise ConfigError("there is no such file", where=key, found=value, way_out=f"set {key} to a .jsonl file")


def _prompts(config: RunConfig, files: bool) -> tuple[int | None, bool, list[str]]:
    """(prompts of a round, counted exactly, notes)."""
    made = int(sum(config.data.synthesis.kinds.values()))
    if made:
        return None if config.data.synthesis.own_prompts else made, False, [_making(config, made, files)]
    given, taken = row_files(config.data.prompts), config.data.prompts_per_round
    if not all(file.is_file() for file in given):
        return taken, taken is not None, [f"{config.data.prompts} is not here, so its rows are not counted"]
    counts = [count_rows(file) for file in given]
    rows, exact = sum(count for count, _ in counts), all(counted for _, counted in counts)
    first = islice(each_row(config.data.prompts, Prompt), _LOOKED_AT)
    notes = own_checks.notes(config, [row for _, row in first if isinstance(row, Prompt)])
    return (rows, exact, notes) if taken is None or rows == 0 else (taken, True, notes)
