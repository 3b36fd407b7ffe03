"""`run --dry-run`: every rank of a job is built on the meta device, one after the other, and held against the plan.

Nothing is read but metadata and nothing is allocated. What the plan says comes from the tables of `checkpoints.names`
and `models.stages`; what is built here comes from Megatron. So a mistake in either shows.
"""

from __future__ import annotations

import resource
import time

from nemo_sdg.config import RunConfig
from nemo_sdg.console import Console
from nemo_sdg.dry_run.building import Builder
from nemo_sdg.dry_run.findings import Findings
from nemo_sdg.parallel.lone import lone_rank
from nemo_sdg.parallel.phases import Phases
from nemo_sdg.parallel.schedule import orders, play
from nemo_sdg.plan import Plan, fitted
from nemo_sdg.plan.units import bytes_text

_MOST = 20
"""Findings that are told one by one."""


def dry_run(config: RunConfig, plan: Plan, console: Console) -> int:
    """Builds and checks all ranks of a run; 0 if everything fits together, else 1 and what does not."""
    began, before = time.monotonic(), _peak_bytes()
    findings = Findings()
    builder = Builder(config, plan, findings)
    with console.progress("building ranks", plan.ranks) as progress:
        for rank in range(plan.ranks):
            with lone_rank(plan.grids.train, rank) as job:
                _check_place(plan, rank, job, findings)
                builder.rank(job, Phases.lay(config, job))
            progress.advance()
    builder.check_whole()
    schedules = _schedules(config, plan, findings)
    if not plan.fits_in:
        most = max(plan.peak.working, plan.peak.training)
        findings.add(
            f"the fullest rank needs {bytes_text(most)}, and can use {bytes_text(plan.machine.usable_bytes)} of"
            f" {plan.machine.name}; the plan above says which placements fit"
        )
    if not findings.all:
        for what, said in (*builder.lines(), *schedules):
            console.say(f"  {what:<16} {said}")
        spent = f"{time.monotonic() - began:.1f} s and {bytes_text(_peak_bytes() - before)} of memory"
        console.say(f"dry run of {plan.name}: all {plan.ranks:,} ranks fit together; it took {spent}")
        return 0
    for finding in findings.all[:_MOST]:
        console.fail(f"nemo-sdg: dry run: {finding}")
    if len(findings.all) > _MOST:
        console.fail(f"nemo-sdg: dry run: and {len(findings.all) - _MOST:,} more")
    return 1


def _check_place(plan: Plan, rank: int, job: object, findings: Findings) -> None:
    """Megatron's order of the ranks is the one that the plan counts by."""
    grid = plan.grids.train
    expected = rank % grid.tp, rank // grid.tp % grid.dp, rank // (grid.tp * grid.dp)
    found = job.tp_rank, job.dp_rank, job.pp_rank
    if found != expected:
        findings.add(f"rank {rank} stands elsewhere: found tp, dp, pp rank {found}, expected {expected}")


def _schedules(config: RunConfig, plan: Plan, findings: Findings) -> list[tuple[str, str]]:
    """Each fit's training step, played through."""
    grid, chunks, told = plan.grids.train, config.topology.virtual_stages, []
    for group, settings in fitted(config).items():
        batches = settings.global_batch_size // (settings.micro_batch_size * grid.dp)
        played = play(orders(grid.pp, batches, chunks), chunks)
        for line in played.stuck:
            findings.add(f"the schedule of {group} with {batches} micro batches does not end: {line}")
        one = f"of 1/{chunks} of its layers" if chunks > 1 else "of all its layers"
        told.append((
            f"train {group}",
            f"{batches} micro batches of {settings.micro_batch_size} on each of {grid.dp} replicas: a stage is idle"
            f" {100 * played.idle:.1f} % of a step, and holds the activations {one} for {max(played.in_flight)} at most",
        ))  # fmt: skip
    return told


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
