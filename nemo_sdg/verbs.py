"""`run` and `stage`: from settings to ranks that work on a run's folder.

Everything that can be refused without a model is refused first: settings, checkpoints, topology, the folder.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_sdg import plan as planning
from nemo_sdg.config import RunConfig, Topology, load, load_recipe, rule_digests
from nemo_sdg.config.starting import begins_with
from nemo_sdg.console import Console, redirect
from nemo_sdg.errors import ConfigError
from nemo_sdg.evaluation import ablation, files, report
from nemo_sdg.session import Session, rank, report_failure
from nemo_sdg.store import Run, StageStore, digest, read_json
from nemo_sdg.store.datasets import read_summary
from nemo_sdg.store.fits import fits
from nemo_sdg.store.waves import START, round_folders

if TYPE_CHECKING:
    from nemo_sdg.parallel.mesh import Mesh

MODULES = ("megatron.core", "nemo_sdg.loop")
NEMO = "nemo_sdg.training.nemo"
"""Takes most of the start; only training needs it."""


def run(recipe: str, overrides: list[str], out: Path, *, stage: str | None = None, round_: int = 0) -> int:
    """Does all rounds, or one stage of one round, and returns the exit status."""
    found = load_recipe(recipe, overrides)
    config, rules = found.config, rule_digests(found.rules)
    if round_ >= config.run.rounds:
        raise ConfigError(
            "the run has no such round", where="--round", found=round_, expected=f"0 to {config.run.rounds - 1}",
            way_out="set run.rounds",
        )  # fmt: skip
    plan = planning.make(config)
    held_out = files.read(config)  # a mistake in them is not to be found when all is trained
    console = Console(speaks=rank() == 0)
    plan.show(console)
    for note in held_out.notes:
        console.say(note)
    if rank() == 0:
        # Settles whose folder this is before the slow imports; the rank takes the lock again.
        Run.open(out, config, writer=True, rules=rules).close()
    if stage is None and _finished(out, config):
        console.say(f"nothing to do: all {config.run.rounds} rounds in {out} are finished and whole")
        _summary(out, console)
        return 0
    trains = stage in (None, "train", "ablate") and bool(fits(config) or begins_with(config))
    job = plan.grids.train
    session = Session(
        topology=Topology(tp=job.tp, pp=job.pp, dp=job.dp, **job.uneven_stages),
        log_dir=out / "logs",
        timeout_s=config.run.timeout_s,
        threads=config.run.threads,
        loading="loading NeMo and Megatron" if trains else "loading Megatron",
        modules=(*MODULES, NEMO) if trains else MODULES,
        resumable=True,
        stop_after=config.run.stop_after,
    )

    def work(mesh: Mesh, console: Console) -> int:
        from nemo_sdg import loop
        from nemo_sdg.parallel import stopping

        with Run.open(out, config, writer=mesh.writer, rules=rules) as opened, stopping.together(mesh, opened.stopped):
            if stage is None:
                loop.run(config, opened, mesh, console, found.rules)
            else:
                loop.run_stage(stage, config, opened, mesh, console, found.rules, round=round_)
            mesh.barrier()
            if mesh.writer:
                if stage is None:
                    _summary(out, console)
                else:
                    place = out / START if stage == "start" else opened.round(round_)
                    console.say(f"{stage} of round {round_} is done; what it made lies in {place}")
        return 0

    return session.start(work)


def dry_run(recipe: str, overrides: list[str]) -> int:
    """Builds every rank of a run on meta tensors and holds it against the plan; returns the exit status."""
    if rank() != 0:  # one process does it all
        return 0
    config, console = load(recipe, overrides), Console()
    plan = planning.make(config, files=False)
    plan.show(console)
    console.say("loading Megatron ...")
    logs = Path(tempfile.mkdtemp(prefix="nemo-sdg-"))
    console = redirect(logs, None)
    try:
        from nemo_sdg.dry_run import dry_run

        status = dry_run(config, plan, console)
    except Exception as error:
        return report_failure(console, logs, None, error, may_speak=True)
    shutil.rmtree(logs, ignore_errors=True)
    return status


def _summary(out: Path, console: Console) -> None:
    report.show(report.read(out), console)
    console.say(f"next: nemo-sdg report {out}")


def _finished(out: Path, config: RunConfig) -> bool:
    """Whether every stage of every round is there and what its names and digests say. Asked without torch."""
    for number in range(config.run.rounds):
        folder = out / f"round-{number}"
        needed = [*(f"{fit.folder}/training.json" for fit in fits(config)), "datasets/summary.json"]
        if not all((folder / name).is_file() for name in needed) or read_json(folder / "evaluation.json") is None:
            return False
        if number == 0 and not ablation.finished(config.evaluate, read_json(folder / ablation.FILE)):
            return False
        stages = [stage for _, stage in report.stage_folders(folder, config)]
        if len(stages) == len(round_folders(config)) or not all((stage / "SUCCESS.json").is_file() for stage in stages):
            return False
        if not all(StageStore.finished(stage).done for stage in stages):
            return False
        (digests,) = read_summary(folder / "datasets", "digests")
        if any(digest(folder / "datasets" / name) != expected for name, expected in digests.items()):
            return False
    return True
