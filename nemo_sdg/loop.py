"""The rounds, readable aloud: prompts, responses, scores, selection, datasets, training, evaluation, and again.

Each stage reads what the stages before it have committed and does only what is missing, so the same command
continues a run that was killed anywhere, and does nothing on a run that is finished.
"""

from __future__ import annotations

from typing import Any

from nemo_sdg.config import RunConfig
from nemo_sdg.console import Console
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.stages import assemble, evaluate, generate, prompts, score, select, train
from nemo_sdg.stages.context import Context
from nemo_sdg.store import Run

STAGES = {
    "prompts": prompts,
    "generate": generate,
    "score": score,
    "select": select,
    "assemble": assemble,
    "train": train,
    "evaluate": evaluate,
}
"""The stages of a round in their order."""


def run(config: RunConfig, opened: Run, mesh: Mesh, console: Console) -> None:
    """All rounds. The policy and the reward model that a round has trained generate and score in the next."""
    for number in range(config.run.rounds):
        for name in STAGES:
            run_stage(name, config, opened, mesh, console, round=number)


def run_stage(name: str, config: RunConfig, opened: Run, mesh: Mesh, console: Console, *, round: int) -> dict[str, Any]:
    """One stage of one round; what it counted."""
    totals = STAGES[name].run(Context(config, opened, round, mesh, console))
    opened.events("stage", round=round, stage=name, totals=totals)
    return totals
