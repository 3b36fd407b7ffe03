"""Jobs of real ranks over the tiny models, killed at chosen moments, and what is left of them."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from small_run import row_files

import nemo_sdg.loop
from nemo_sdg.config import RunConfig, Topology, load
from nemo_sdg.config.evaluating import FILES
from nemo_sdg.console import Console
from nemo_sdg.parallel import device, mesh
from nemo_sdg.parallel.launch import die_with_parent, launch
from nemo_sdg.store import Run, StageStore

PROMPTS, SAMPLES, GROUP = 24, 2, 4
VICTIMS = ("one rank", "all ranks", "the launcher")
MOMENTS = ("prompts/part-*", "responses/part-*", "scored/part-*", "decisions/part-*", "datasets")
"""What must have appeared in the folder of the round, so and so often, when the kill falls."""
_PATIENCE_S = 120.0


def settings(*words: str) -> RunConfig:
    """The tiny recipe's first round without training: 48 responses in 6 groups."""
    given = [f"data.prompts_per_round={PROMPTS}", f"generate.samples={SAMPLES}", f"generate.group_size={GROUP}"]
    given += ["generate.max_tokens=16", "generate.slots=8", "run.rounds=1", "run.timeout_s=30"]
    given += ["sft.enabled=false", "reward.enabled=false", *(f"evaluate.{name}=null" for name in FILES)]
    return load("tiny", [*given, *words])


@dataclass
class Job:
    """A launcher, forked from the test process, and its ranks; alone, the launcher is the rank."""

    pid: int
    world: int
    out: Path
    status: int | None = None

    @classmethod
    def start(cls, config: RunConfig, out: Path, topology: Topology) -> "Job":
        import megatron.core  # noqa: F401  (once, before the forks)

        device.install()
        config = dataclasses.replace(config, topology=topology)
        world = topology.tp * topology.pp * topology.dp
        out.parent.mkdir(parents=True, exist_ok=True)
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                die_with_parent()
                log = os.open(out.parent / f"{out.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                status, _ = launch(lambda: _rank(config, out), world)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        return cls(pid, world, out)

    def ranks(self) -> list[int]:
        """Their process ids, as far as they were started."""
        if self.world == 1:
            return [self.pid]
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []

    def runs(self) -> bool:
        if self.status is None:
            pid, code = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(code) if pid else None
        return self.status is None

    def wait(self, seconds: float = _PATIENCE_S) -> int:
        """The exit status. Raises AssertionError when it does not end in time."""
        until = time.monotonic() + seconds
        while self.runs():
            assert time.monotonic() < until, f"the job goes on after {seconds} s; {self.log()[-2000:]}"
            time.sleep(0.005)
        return self.status

    def log(self) -> str:
        return (self.out.parent / f"{self.out.name}.log").read_text()


def _rank(config: RunConfig, out: Path) -> int:
    torch.set_num_threads(1)
    here = mesh.join(config.topology, timeout_s=config.run.timeout_s)
    with Run.open(out, config, writer=here.writer) as opened:
        nemo_sdg.loop.run(config, opened, here, Console(speaks=False))
        here.barrier()
    mesh.leave()
    return 0


def finish(config: RunConfig, out: Path, topology: Topology) -> dict[str, bytes]:
    """Runs to the end; the rows of the run by file."""
    job = Job.start(config, out, topology)
    assert job.wait() == 0, job.log()[-3000:]
    return row_files(out)


@dataclass(frozen=True)
class Kill:
    """What was killed when, and what it left."""

    victim: str
    moment: str
    count: int
    committed: dict[str, tuple[int, int]]
    """Parts that stood there, with inode and time of change."""
    ended_after_s: float
    """Until the launcher had ended."""


def kill(
    config: RunConfig, out: Path, topology: Topology, victim: str, chance: random.Random,
    moments: tuple[str, ...] = MOMENTS,
) -> Kill:  # fmt: skip
    """Starts or continues a run and kills it for certain: after a kill that came too late, an earlier moment."""
    groups = PROMPTS // GROUP
    for _ in range(20):
        moment = chance.choice(moments)
        there = len(list((out / "round-0").glob(moment)))
        count = 1 if moment == "datasets" else min(groups, there + chance.randrange(1, 4))
        jitter = chance.random() * 0.04
        job = Job.start(config, out, topology)
        until = time.monotonic() + _PATIENCE_S
        while job.runs() and len(list((out / "round-0").glob(moment))) < count and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(jitter)
        ranks = job.ranks()
        targets = {
            "one rank": [chance.choice(ranks)] if ranks else [],
            "all ranks": ranks,
            "the launcher": [job.pid],
        }[victim]
        began = time.monotonic()
        if job.runs():
            for pid in targets:
                os.kill(pid, signal.SIGKILL)
        if job.wait(15 if targets else _PATIENCE_S) == 0:
            # It came too late: there was no rank yet, or the work was done and the ranks were about to end.
            assert (out / "round-0/evaluation.json").exists(), "a job that was killed says that all is well"
            _undo(out, chance)
            continue
        took = time.monotonic() - began
        for pid in ranks:
            assert _ends(pid, 5), f"rank process {pid} outlives its killed job"
        parts = {str(file.relative_to(out)): file.stat() for file in out.glob("round-0/**/part-*")}
        stood = {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in parts.items()}
        return Kill(victim, moment, count, stood, took)
    raise AssertionError("no kill hit a living run")


def _undo(out: Path, chance: random.Random) -> None:
    """Takes away the end of a run that was finished too soon, so that there is something to kill."""
    shutil.rmtree(out / "round-0/datasets")
    (out / "round-0/evaluation.json").unlink()
    for name in ("decisions", "scored", "responses")[: chance.randrange(1, 4)]:
        shutil.rmtree(out / "round-0" / name)


def _ends(pid: int, seconds: float) -> bool:
    """Whether a process is gone, or dead and only not waited for, within the time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        # The first thread may be dead while the kernel still ends the others, which hold the files open.
        if state in "ZX" and _threads(pid) <= 1:
            return True
        time.sleep(0.005)
    return False


def _threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def redone(out: Path, killed: Kill) -> list[str]:
    """Committed parts that were made again."""
    now = {name: (out / name).stat() for name in killed.committed if (out / name).exists()}
    same = {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in now.items()}
    return [name for name, was in killed.committed.items() if same.get(name) != was]


def missing_and_double(out: Path) -> tuple[int, int]:
    """Responses of the round that are not there, and those that are there twice or more."""
    ids = [row["id"] for row in StageStore.finished(out / "round-0/responses").read()]
    prompts = [row["id"] for row in StageStore.finished(out / "round-0/prompts").read()]
    asked = {f"{name}#{sample}" for name in prompts for sample in range(SAMPLES)}
    return len(asked - set(ids)), len(ids) - len(set(ids))


TOPOLOGIES = {
    "TP1": Topology(dp=1),
    "TP2": Topology(tp=2, dp=1),
    "PP2": Topology(pp=2, dp=1),
    "DP2": Topology(dp=2),
}
