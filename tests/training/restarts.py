"""Fits that are killed and go on, and all that must then be as if nothing had happened."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nemo_sdg.config import Models, Training

SETTINGS = Training(
    steps=8, global_batch_size=8, micro_batch_size=2, max_length=256, learning_rate=2e-3, warmup_steps=3, clip_grad=0.5,
    restart_every=3,
)  # fmt: skip


def fit(mesh: Any, world: Path, out: Path, task: str, settings: Training = SETTINGS, **more: Any) -> dict[str, Any]:
    from nemo_sdg.training import fit as module

    options = {"models": Models(dtype="fp64"), "start": world / "base", "rows": world / f"{task}.jsonl", "seed": 5, **more}
    return module.fit(task, settings, out=out, mesh=mesh, **options)


def recorded(
    mesh: Any, world: Path, out: Path, task: str, settings: Training = SETTINGS, kill_at: int | None = None, **more: Any
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
    found["losses"] = fit(mesh, world, out, task, settings, **more)["losses"]
    return found


def moments(optimizer: Any) -> list[Any]:
    """Both moments of Adam of each parameter, and the main weights, in the order of the parameters."""
    whole = optimizer.mcore_optimizer
    found = []
    for one in getattr(whole, "chained_optimizers", [whole]):
        for group in one.optimizer.param_groups:
            for parameter in group["params"]:
                state = one.optimizer.state[parameter]
                found += [parameter.detach().clone().numpy(), *(state[key].clone().numpy() for key in ("exp_avg", "exp_avg_sq"))]
    return found


def killed(run_ranks: Any, *args: Any, **more: Any) -> None:
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
        assert resumed["lines"][step] == straight["lines"][step] and resumed["drawn"][step] == straight["drawn"][step], step


def straight_settings(settings: Training = SETTINGS) -> Training:
    """The same fit without restart points."""
    return replace(settings, restart_every=None)
