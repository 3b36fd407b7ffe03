"""Brings up the ranks of a verb: the logs, the slow imports, the process group, and one voice when it fails.

Under torchrun this process is one rank. Otherwise it imports once, forks the local ranks and waits for them.
Nothing here imports torch before `start`.
"""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_sdg.config import Topology
from nemo_sdg.config.stopping import seconds
from nemo_sdg.console import Console, log_file, redirect, tail
from nemo_sdg.errors import Stopped, UserError

if TYPE_CHECKING:
    from nemo_sdg.parallel.mesh import Mesh

Work = Callable[["Mesh", Console], Any]


def rank() -> int:
    """This process among those that torchrun started; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def under_torchrun() -> bool:
    """Whether somebody else has started the ranks of this job."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def world_size(topology: Topology) -> int:
    """Ranks of this launch: torchrun's, or as many local ones as the topology asks for."""
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else topology.tp * topology.pp * (topology.dp or 1)


@dataclass(frozen=True, kw_only=True)
class Session:
    """How the ranks of one verb are started."""

    topology: Topology
    log_dir: Path
    timeout_s: float = 600
    threads: int | None = None
    loading: str = "loading NeMo and Megatron"
    """What the person reads while the imports run."""
    modules: Sequence[str] = ()
    """Imported before the ranks are forked, so that it is done once."""
    resumable: bool = False
    """SIGTERM and SIGUSR1 let `work` come to its next place to stop; otherwise they end a rank where it is."""
    stop_after: str | None = None
    """It is told to stop so long after the job has begun."""

    def start(self, work: Work) -> int:
        """Runs `work(mesh, console)` on every rank and returns the exit status of the whole."""
        torchrun = under_torchrun()
        # torch would otherwise start CUDA to count the GPUs, and a process that did cannot fork ranks.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        local = 1 if torchrun else world_size(self.topology)
        if local > 1:
            # Read when torch is first imported: a pool of threads that the imports start here would be missing
            # in the forked ranks, which then wait for it. Each rank sets its own number.
            os.environ["OMP_NUM_THREADS"] = "1"
        own_log = None if local > 1 else rank()
        console = redirect(self.log_dir, own_log)
        try:
            self._load(console)
            from nemo_sdg.parallel import launch, watch
        except Exception as error:
            return report_failure(console, self.log_dir, own_log, error, may_speak=rank() == 0)
        if local == 1:
            return self._rank(work, console)
        console.close()

        def ended(failed: int, number: int, told: bool, store: Any) -> None:
            """A rank that a signal has ended could not say anything itself."""
            if launch.claim_report_in(store):
                during = _during(watch.last_told(store, failed))
                if told and number in launch.STOPS:
                    console.fail(_stopped(watch.last_told(store, failed)))
                else:
                    console.fail(_last_words(self.log_dir, failed, f"was ended by signal {number}{during}"))

        status, _ = launch.launch(
            lambda: self._rank(work, redirect(self.log_dir, rank(), terminal=console)), local, ended
        )
        return 1 if status > 128 else status

    def _load(self, console: Console) -> None:
        console.say(f"{self.loading} ...")
        with console.progress(self.loading), _nothing_begun() if self.resumable else nullcontext():
            for name in ("torch", "nemo_sdg.parallel.mesh", *self.modules):
                importlib.import_module(name)
        # Hundreds of thousands of objects that stay: every collection would go through them, and in a forked rank copy their pages.
        gc.freeze()

    def _rank(self, work: Work, console: Console) -> int:
        from nemo_sdg.parallel import device, launch, mesh, watch

        try:
            device.install()
            launch.set_threads(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), self.threads)
            world = int(os.environ.get("WORLD_SIZE", "1"))
            with watch.watching(rank(), world, self.timeout_s, lambda: self._cut_off(console, watch.Unreachable())):
                try:
                    grid = mesh.join(self.topology, self.timeout_s)
                    with self._listening(console):
                        status = work(grid, console)
                except Exception as error:
                    # Who is missing is asked first: a launcher that sees a rank die says it better.
                    try:
                        missing = watch.silent() if watch.is_lost_peer(error) else []
                    except watch.Unreachable:
                        self._cut_off(console, error)
                        return 1
                    speaks = launch.claim_report()
                    return report_failure(console, self.log_dir, rank(), error, may_speak=speaks, missing=missing)
            console.close()
            mesh.leave()
            return int(status or 0)
        except KeyboardInterrupt:
            return 130
        except Exception as error:
            return report_failure(console, self.log_dir, rank(), error, may_speak=launch.claim_report())
        finally:
            console.close()

    def _cut_off(self, console: Console, error: Exception) -> None:
        """Says once on a node that it has lost the first one, and ends its torchrun."""
        from nemo_sdg.parallel import watch

        traceback.print_exception(error)  # into the log
        if os.environ.get("LOCAL_RANK", "0") == "0":
            where, log = os.environ["MASTER_ADDR"], log_file(self.log_dir, rank())
            console.fail(
                f"nemo-sdg: rank {rank()} cannot reach {where}, which holds the job together{_during(_phase())}: the node is "
                f"gone, or the network to it; see {log}"
            )
        else:
            time.sleep(watch.PATIENCE_S)  # for the one that says it: it ends with torchrun
        watch.end_launcher()

    def _listening(self, console: Console) -> AbstractContextManager:
        from nemo_sdg.parallel import launch, stopping

        def said() -> None:
            if launch.claim_report():
                console.fail(_stopped(_phase()))

        if not self.resumable:
            return nullcontext()
        after = None if self.stop_after is None else (self.stop_after, seconds(self.stop_after))
        return stopping.listening(after, on_second=said)


def start_once(work: Work, **how: Any) -> int:
    """Runs `work` on ranks whose logs nobody wants when it has gone well; the exit status.

    Args:
        how: the fields of `Session`, but for `log_dir`.
    """
    logs = Path(tempfile.mkdtemp(prefix="nemo-sdg-"))
    status = Session(log_dir=logs, **how).start(work)
    if status == 0:
        shutil.rmtree(logs, ignore_errors=True)
    return status


@contextmanager
def _nothing_begun() -> Iterator[None]:
    """Within the block a signal to stop ends this process with the status that says so."""
    told: list[Stopped] = []

    def stop(number: int, frame: object) -> None:
        what = f"told to stop ({signal.Signals(number).name}) before anything had begun"
        told.append(Stopped(what, way_out="the same command begins"))
        raise told[0]

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if told:  # a library that tries an import may have caught it
        raise told[0]


def report_failure(
    console: Console,
    log_dir: Path,
    own_rank: int | None,
    error: Exception,
    *,
    may_speak: bool,
    missing: Sequence[tuple[int, str]] = (),
) -> int:
    """Says once what went wrong and returns the exit status: 2 for a mistake of the user, 1 for one of ours.

    Args:
        missing: ranks that do not answer, each with what it did last.
    """
    traceback.print_exception(error)  # into the log
    if isinstance(error, UserError):
        if may_speak:
            console.fail(f"nemo-sdg: {error}")
        return error.exit_status
    if may_speak and missing:
        who = ", ".join(f"rank {lost} was killed or stands still{_during(phase)}" for lost, phase in missing)
        console.fail(f"nemo-sdg: {who}; rank {own_rank} waited for it in vain, see {log_file(log_dir, own_rank)}")
    elif may_speak:
        console.fail(_last_words(log_dir, own_rank, f"failed with {type(error).__name__}{_during(_phase())}"))
    return 1


def _phase() -> str:
    """What this rank was doing; torch may not have come up."""
    watch = sys.modules.get("nemo_sdg.parallel.watch")
    return watch.phase() if watch is not None else ""


def _during(phase: str) -> str:
    return f" during {phase}" if phase else ""


def _stopped(phase: str) -> str:
    return f"nemo-sdg: stopped{_during(phase)}; the same command goes on from what is there"


def _last_words(log_dir: Path, failed: int | None, what: str) -> str:
    who = "the launcher" if failed is None else f"rank {failed}"
    lines = "\n".join(f"  | {line}" for line in tail(log_dir, failed).splitlines())
    return f"{lines}\nnemo-sdg: {who} {what}; the traceback is in {log_file(log_dir, failed)}"
