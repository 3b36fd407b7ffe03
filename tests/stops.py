"""A small run that is told to stop in a chosen phase, by a signal to the rank that works there, and what is left."""

from __future__ import annotations

import importlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import Done, forked
from small_run import make_inputs, small_config

from nemo_sdg import verbs
from nemo_sdg.config import RunConfig
from nemo_sdg.store import StageStore

CHECK = {"line": "Say please.", "reason": "rude", "wanted": True, "question": "must"}


def _committed(folder: str) -> Callable[[tuple], bool]:
    return lambda called: called[0].dir.name == folder


def _last_rank(called: tuple) -> bool:
    """Not the one that writes; where an engine steps with the placement `split` the first, for the last one only scores."""
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    if hasattr(called[0], "mesh"):
        rank, world = called[0].mesh.rank, called[0].mesh.world_size
    return rank == world - 1


PHASES: dict[str, tuple[str, str, Callable[[tuple], bool], int]] = {
    "prompts": ("nemo_sdg.store.stage", "StageStore.commit", _committed("prompts"), 2),
    "generate": ("nemo_sdg.engine.generate", "Engine.step", _last_rank, 5),
    "score": ("nemo_sdg.store.stage", "StageStore.commit", _committed("scored"), 1),
    "judge": ("nemo_sdg.store.stage", "StageStore.commit", _committed("answers"), 1),
    "select": ("nemo_sdg.store.stage", "StageStore.commit", _committed("decisions"), 2),
    "assemble": ("nemo_sdg.store.datasets", "DatasetFolder.add_line", lambda called: True, 3),
    "loading": ("nemo_sdg.checkpoints.blocks", "Blocks.done", _last_rank, 2),
    "train": ("nemo_sdg.training.strategy", "FitStrategy.training_step", _last_rank, 2),
    "evaluate": ("nemo_sdg.evaluation.held_out", "_rows", lambda called: True, 1),
}
"""In each phase: what is called there, which calls count, and how many of them there are before the signal."""


def world(root: Path) -> tuple[Path, RunConfig]:
    """Inputs with a check for the judge, and a run of one round over them; long enough to be stopped."""
    inputs = make_inputs(root)
    rows = [{"id": f"p{i}", "prompt": f"{'abcd'[i % 4]}{i}", "checks": [CHECK]} for i in range(24)]
    (inputs / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small_config(inputs, rounds=1)
    config.data.checks, config.select.checks = True, True
    config.judge.max_tokens = 4
    config.sft.restart_every = config.reward.restart_every = None
    return inputs, config


def start(recipe: Path, out: Path, *words: str, phase: str | None = None, number: int = signal.SIGTERM) -> Done:
    """Runs a recipe, or goes on with it; one rank gets the signal in the phase."""

    def job() -> int:
        if phase is not None:
            _strike(*PHASES[phase], number)
        return verbs.run(str(recipe), list(words), out)

    return forked(job)


def _strike(module: str, name: str, counts: Callable[[tuple], bool], at: int, number: int) -> None:
    owner: Any = importlib.import_module(module)
    *above, last = name.split(".")
    for part in above:
        owner = getattr(owner, part)
    original, calls = getattr(owner, last), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if counts(args):
            calls.append(0)
            if len(calls) == at:
                os.kill(os.getpid(), number)
        return result

    setattr(owner, last, counted)


def groups(out: Path) -> dict[str, tuple[int, int]]:
    """Every committed row group, with inode and time of change."""
    files = [file for file in (out / "round-0").glob("**/part-*") if file.is_file()]
    return {str(file.relative_to(out)): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def ids(out: Path, stage: str) -> list[str]:
    return [row["id"] for row in StageStore.finished(out / "round-0" / stage).read()]
