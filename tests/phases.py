"""A small run whose second rank is killed or stopped in a chosen phase, and what is then seen and left."""

from __future__ import annotations

import importlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import Done, forked

from nemo_sdg import verbs
from nemo_sdg.store import lock

PHASES = {
    "loading": ("nemo_sdg.engine.load", "fill", 1, "generate of round 0, loading "),
    "generation": ("nemo_sdg.engine.generate", "Engine.step", 5, "generate of round 0"),
    "scoring": ("nemo_sdg.engine.score", "_run", 1, "score of round 0"),
    "forward and backward": ("nemo_sdg.training.forward", "to_device", 2, "train of round 0, sft, step 1"),
    "saving": ("nemo_sdg.training.randomness", "save", 1, "train of round 0, sft, saving"),
}
"""What is called in each phase, at which call of it the rank is hit, and how the message names it."""
TIMEOUT_S = 20


@dataclass(frozen=True)
class Hit:
    """How a run ended whose second rank was hit."""

    done: Done
    seconds: float
    """From the hit to the end of the launcher."""
    outlived: list[int]
    """Ranks that are still there."""

    @property
    def said(self) -> list[str]:
        """What was said of it, on standard error."""
        return [line for line in self.done.stderr.splitlines() if "nemo-sdg: " in line]


def hit(recipe: Path, out: Path, phase: str, number: int) -> Hit:
    """Runs a recipe on two ranks of DP and sends the second one a signal within its phase."""
    module, name, count, _ = PHASES[phase]
    out.parent.mkdir(parents=True, exist_ok=True)
    notes = out.with_name(f"{out.name}.notes")
    notes.mkdir()

    def job() -> int:
        _strike(module, name, count, number, notes)
        return verbs.run(str(recipe), ["topology.dp=2", f"run.timeout_s={TIMEOUT_S}"], out)

    done = forked(job)
    ended = time.time()
    struck = float((notes / "struck").read_text())
    pids = [int(file.read_text()) for file in notes.glob("pid-*")]
    return Hit(done, ended - struck, [pid for pid in pids if Path(f"/proc/{pid}").exists()])


def lock_is_free(out: Path) -> bool:
    lock.release(lock.take(out / "run.lock", "the run", "wait"))
    return True


def _strike(module: str, name: str, count: int, number: int, notes: Path) -> None:
    owner: Any = importlib.import_module(module)
    *above, last = name.split(".")
    for part in above:
        owner = getattr(owner, part)
    original, calls = getattr(owner, last), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(0)
        if len(calls) == 1:
            (notes / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
        if os.environ["RANK"] == "1" and len(calls) == count:
            time.sleep(0.1)  # so that the phase has been told
            (notes / "struck").write_text(str(time.time()))
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(owner, last, counted)
    if module == "nemo_sdg.training.forward":  # imported by name
        importlib.import_module("nemo_sdg.training.model").to_device = counted


def check(found: Hit, out: Path, phase: str, number: int) -> None:
    """One error that names rank and phase, a status that is not 0, in time, and nothing left behind."""
    assert found.done.returncode == 1 and len(found.said) == 1, (found.done.returncode, found.done.stderr[-3000:])
    assert PHASES[phase][3] in found.said[0] and "rank 1 was " in found.said[0], found.said
    assert found.seconds < (15 if number == signal.SIGKILL else TIMEOUT_S + 15), found.seconds
    assert not found.outlived and lock_is_free(out)
