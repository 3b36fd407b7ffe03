"""Fits that are killed and go on, and all that must then be as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import kills
import torch
from ranks import run_ranks

from nemo_sdg.config import Models, Preference, RewardTraining, Topology, Training
from nemo_sdg.parallel import device, mesh
from nemo_sdg.parallel.launch import die_with_parent, launch

SETTINGS = Training(
    steps=8, global_batch_size=8, micro_batch_size=2, max_length=256, learning_rate=2e-3, warmup_steps=3, clip_grad=0.5,
    restart_every=3,
)  # fmt: skip


KINDS: dict[str, tuple[str, type, dict[str, Any], str]] = {
    "sft": ("sft", Training, {}, "sft"),
    "reward": ("reward", RewardTraining, {}, "reward"),
    # At the rate of the others one step, the 13th, makes of a difference in the last digit one that is 270 times as large.
    "bradley_terry": ("reward", RewardTraining, {"objective": "bradley_terry_scaled", "learning_rate": 2e-4}, "pairs"),
    "dpo": ("preference", Preference, {"objective": "dpo", "sft_weight": 0.1}, "pairs"),
    "rpo": ("preference", Preference, {"objective": "rpo"}, "pairs"),
}
"""Fits of each task: the task, its settings beside those of every fit, and its rows."""


def fit(mesh: Any, world: Path, out: Path, kind: str, settings: Training = SETTINGS, **more: Any) -> dict[str, Any]:
    from nemo_sdg.training import fit as module

    task, made, own, rows = KINDS[kind]
    settings = made(**{**{field.name: getattr(settings, field.name) for field in fields(Training)}, **own})
    options = {"models": Models(dtype="fp64"), "start": world / "base", "rows": world / f"{rows}.jsonl", "seed": 5}
    return module.fit(task, settings, out=out, mesh=mesh, **options, **more)


def recorded(
    mesh: Any, world: Path, out: Path, kind: str, settings: Training = SETTINGS, kill_at: int | None = None, **more: Any
) -> dict[str, Any]:
    """A fit and what it was made of: losses, by step the lines that this rank read and numbers that it drew at random,
    and at the end weights, moments and random state.

    Args:
        kill_at: all ranks die by SIGKILL at the beginning of this step.
    """
    from megatron.core import tensor_parallel

    from nemo_sdg.training import randomness
    from nemo_sdg.training.checkpoint import CommittedCheckpoint
    from nemo_sdg.training.strategy import FitStrategy

    found: dict[str, Any] = {"lines": {}, "drawn": {}}
    step, save = FitStrategy.training_step, CommittedCheckpoint.on_train_batch_end

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        number = self.trainer.global_step
        if number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        loss = step(self, *args, **kwargs)
        found["lines"][number] = list(self.lightning_module.step_lines)
        # The models draw nothing while they train; what does would draw from these.
        drawn = [torch.rand(2)]
        with tensor_parallel.get_cuda_rng_tracker().fork():
            drawn.append(torch.rand(2))
        found["drawn"][number] = torch.cat(drawn).tolist()
        return loss

    def on_train_batch_end(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            found["weights"] = [p.detach().clone().numpy() for c in trainer.strategy.model for p in c.parameters()]
            found["moments"] = moments(trainer.optimizers[0])
            found["random"] = randomness._state()
        save(self, trainer, *args, **kwargs)

    FitStrategy.training_step, CommittedCheckpoint.on_train_batch_end = training_step, on_train_batch_end
    found["losses"] = fit(mesh, world, out, kind, settings, **more)["losses"]
    return found


def moments(optimizer: Any) -> list[Any]:
    """Both moments of Adam of each parameter, and the main weights, in the order of the parameters."""
    whole = optimizer.mcore_optimizer
    found = []
    for one in getattr(whole, "chained_optimizers", [whole]):
        for group in one.optimizer.param_groups:
            for parameter in group["params"]:
                state = one.optimizer.state[parameter]
                both = (state["exp_avg"], state["exp_avg_sq"])
                found += [tensor.detach().clone().numpy() for tensor in (parameter, *both)]
    return found


def killed(*args: Any, **more: Any) -> None:
    """Runs a fit that ends in a kill."""
    try:
        run_ranks(*args, **more)
    except AssertionError as error:
        assert "ended without a result" in str(error), error
    else:
        raise AssertionError("nothing was killed")


def same(straight: dict[str, Any], resumed: dict[str, Any], since: int) -> None:
    """Bit for bit the same weights, moments, random state, losses, and from the restart on lines and draws."""
    for key in ("weights", "moments"):
        pairs = list(zip(straight[key], resumed[key], strict=True))
        assert pairs and all(torch.equal(torch.from_numpy(a), torch.from_numpy(b)) for a, b in pairs), key
    assert straight["random"] == resumed["random"] and straight["losses"] == resumed["losses"]
    assert sorted(resumed["lines"]) == list(range(since, len(straight["losses"])))
    for step in resumed["lines"]:
        for key in ("lines", "drawn"):
            assert resumed[key][step] == straight[key][step], (key, step)


def straight_settings(settings: Training = SETTINGS) -> Training:
    """The same fit without restart points."""
    return replace(settings, restart_every=None)


def start(world: Path, out: Path, settings: Training, ranks: int) -> kills.Job:
    """A launcher, forked from this process, whose ranks fit under TP."""
    device.install()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            die_with_parent()
            log = os.open(out.with_name(f"{out.name}.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            status, _ = launch(lambda: _rank(world, out, settings, ranks), ranks)
        finally:
            os._exit(status)
    return kills.Job(pid, ranks, out)


def _rank(world: Path, out: Path, settings: Training, ranks: int) -> int:
    torch.set_num_threads(1)
    here = mesh.join(Topology(tp=ranks), timeout_s=60)
    fit(here, world, out, "sft", settings)
    here.barrier()
    return 0


def _saving(work: Path, since: float) -> bool:
    """Whether a save that began since then is under way; one that was killed before does not count."""
    for entry in work.glob(".step-*.writing"):
        with contextlib.suppress(OSError):
            if entry.stat().st_mtime > since:
                return True
    return False


def kill_while_saving(world: Path, out: Path, count: int, chance: random.Random) -> dict[str, int]:
    """Kills a fit so many times while it saves, and lets it go on from what is there each time; what the kills met.

    Each start must get as far as the next save, with the losses of an undisturbed fit, so what it began from was whole.
    """
    from nemo_sdg.training.checkpoint import LOSSES, step_folder, whole_steps

    work, ranks = out.with_name(f".{out.name}.fit"), 2
    settings = replace(SETTINGS, steps=10 * count, restart_every=1)
    met: Counter[str] = Counter()
    latest = 0
    for number in range(count):
        began = time.time()
        job = start(world, out, settings, ranks)

        def far_enough() -> bool:
            # Every other kill comes behind a whole save: on a slow machine all of them might meet the first one.
            return _saving(work, began) and (number % 2 == 0 or whole_steps(work)[-1:] > [latest])

        while job.runs() and not far_enough() and time.time() < began + 120:
            time.sleep(0.0005)
        assert job.runs(), f"it did not go on from step {latest}: {job.log()[-3000:]}"
        time.sleep(chance.random() * 0.4)  # a save takes 0.2 s where nothing else runs
        victim = kills.VICTIMS[number % 3]
        pids = job.ranks()
        for pid in {"one rank": [chance.choice(pids)], "all ranks": pids, "the launcher": [job.pid]}[victim]:
            os.kill(pid, signal.SIGKILL)
        assert job.wait(15) != 0
        assert all(kills._ends(pid, 5) for pid in pids), "a rank outlives its killed job"
        steps = whole_steps(work)
        met["torn" if _saving(work, began) else "between saves"] += 1
        met[f"saved {len(steps) and steps[-1] - latest} more"] += 1
        assert (steps[-1] if steps else 0) >= latest, "a restart point was lost"
        latest = steps[-1] if steps else 0
        if steps:
            losses = json.loads((step_folder(work, latest) / LOSSES).read_text())
            assert len(losses) == latest
    # As many steps as were done in the end: the whole fit would be longer than all kills together.
    straight = replace(settings, steps=latest + 2, restart_every=None)
    expected = run_ranks(fit, world, out.with_name("straight"), "sft", straight, tp=ranks)[0]["losses"]
    assert losses == expected[:latest] and latest > 0
    return dict(sorted(met.items()))
