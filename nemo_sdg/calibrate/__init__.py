"""`calibrate`: the rates of this machine, measured on small models by the engine and the trainer that a run uses.

About a minute after the imports. What is measured are times of decode steps, of prefill and scoring passes, of training steps
and of fits, over models of several widths and depths; the rates are those by which the plan's own formulas give these times
best (`solving`).
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_sdg.config import Topology
from nemo_sdg.console import Console
from nemo_sdg.errors import ConfigError
from nemo_sdg.session import start_once, under_torchrun
from nemo_sdg.store import commit_file

if TYPE_CHECKING:
    from nemo_sdg.parallel.mesh import Mesh


_MOST_RANKS = 8
"""That are started where nobody says how many."""


def calibrate(out: Path, dtype: str | None, ranks: int | None, threads: int | None) -> int:
    """Measures ranks of this machine that are at work together, and writes the file that `hardware.calibration` reads.

    Args:
        ranks: None is one for each GPU, or for each core (of `threads`), 8 at most.
    Returns:
        The exit status.
    Raises:
        ConfigError: under torchrun, as it starts its ranks itself; more ranks than GPUs.
    """
    if under_torchrun():
        raise ConfigError("it starts its ranks itself", where="calibrate", found="torchrun", way_out="call nemo-sdg itself")
    if out.is_dir():
        raise ConfigError("a file is to be written", where=out, found="a folder", way_out="name a file in it")
    if not out.absolute().parent.is_dir():
        raise ConfigError("there is no such folder", where=out.absolute().parent, way_out="name a file in one that is there")
    gpus = _gpus()
    if gpus and ranks is not None and ranks > gpus:
        raise ConfigError("each rank needs a GPU of its own", where="--ranks", found=ranks, expected=f"at most {gpus}",
                          way_out="leave --ranks out")  # fmt: skip
    ranks = ranks or min(_MOST_RANKS, gpus or max(1, len(os.sched_getaffinity(0)) // (threads or 1)))

    def work(mesh: Mesh, console: Console) -> int:
        from nemo_sdg.calibrate import pieces, solving

        measured = pieces.measure(mesh, Path(folder), dtype, console)
        if not mesh.writer:
            return 0
        rates, errors = solving.rates(measured)
        told = {
            "made": {**measured.machine, "load": round(os.getloadavg()[0], 2)},
            "rates": rates,
            "errors": errors,
        }
        commit_file(out, (json.dumps(told, indent=1) + "\n").encode())
        rows = [(kind, count, f"{100 * middle:.0f} %", f"{100 * worst:.0f} %") for kind, (count, middle, worst) in errors.items()]
        columns = ("what", "times", "median error", "largest")
        console.table("the formulas with these rates against what was measured", columns, rows)
        busy = f"; {told['made']['load']} processes were running, so do it again when the machine is quiet"
        console.say(f"the rates are in {out}{busy if told['made']['load'] > 1.5 * (os.cpu_count() or 1) else ''}")
        console.say(f"next: nemo-sdg plan RECIPE hardware.calibration={out}")
        return 0

    with tempfile.TemporaryDirectory(prefix="nemo-sdg-") as folder:
        return start_once(work, topology=Topology(dp=ranks), threads=threads, modules=("megatron.core", "nemo_sdg.training.nemo"))


def _gpus() -> int:
    """That this process may use, without asking CUDA, which a process that forks ranks must not start."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return there if seen is None else min(there, len([one for one in seen.split(",") if one.strip()]))
