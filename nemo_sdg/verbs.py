"""`run` and `stage`: from settings to ranks that work on a run's folder.

Everything that can be refused without a model is refused first: settings, checkpoints, topology, the folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_sdg import plan as planning
from nemo_sdg.config import RunConfig, load
from nemo_sdg.console import Console
from nemo_sdg.evaluation import report
from nemo_sdg.session import Session, rank
from nemo_sdg.store import Run

if TYPE_CHECKING:
    from nemo_sdg.parallel.mesh import Mesh

MODULES = ("megatron.core", "nemo.collections.llm", "nemo_sdg.loop")


def run(recipe: str, overrides: list[str], out: Path, *, stage: str | None = None, round_: int = 0) -> int:
    """Does all rounds, or one stage of one round, and returns the exit status."""
    config = load(recipe, overrides)
    plan = planning.make(config)
    console = Console(speaks=rank() == 0)
    plan.show(console)
    if rank() == 0:
        # Settles whose folder this is before the slow imports; the rank takes the lock again.
        Run.open(out, config, writer=True).close()
    session = Session(
        topology=config.topology,
        log_dir=out / "logs",
        timeout_s=config.run.timeout_s,
        threads=config.run.threads,
        modules=MODULES,
    )

    def work(mesh: Mesh, console: Console) -> int:
        from nemo_sdg import loop

        with Run.open(out, config, writer=mesh.writer) as opened:
            if stage is None:
                loop.run(config, opened, mesh, console)
            else:
                loop.run_stage(stage, config, opened, mesh, console, round=round_)
            mesh.barrier()
            if mesh.writer:
                _finish(opened, config, console, stage)
        return 0

    return session.start(work)


def _finish(opened: Run, config: RunConfig, console: Console, stage: str | None) -> None:
    result = report.read(opened.out)
    if stage is None:
        report.show(result, console)
        console.say(f"next: nemo-sdg report {os.path.relpath(opened.out)}")
    else:
        console.say(f"{stage} is done; its rows lie under {opened.out}")
