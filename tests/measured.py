"""What a real fit holds on this rank, storage by storage: weights, gradients, optimizer, and what autograd has saved; and
what the process takes of the machine."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Saved:
    """Bytes of the storages that autograd keeps for backward passes, now and at most; parameters are left out."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self._held: Counter[int] = Counter()
        self._now = self.most = 0

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Kept(self, tensor), lambda kept: kept.tensor)

    def take(self, tensor: Tensor) -> None:
        place = tensor.untyped_storage().data_ptr()
        if place not in self._parameters:
            self._held[place] += 1
            if self._held[place] == 1:
                self._now += tensor.untyped_storage().nbytes()
                self.most = max(self.most, self._now)

    def give(self, tensor: Tensor) -> None:
        place = tensor.untyped_storage().data_ptr()
        if place not in self._parameters:
            self._held[place] -= 1
            if not self._held[place]:
                self._now -= tensor.untyped_storage().nbytes()


class _Kept:
    """One saved tensor: while it is kept, its storage is."""

    def __init__(self, saved: Saved, tensor: Tensor) -> None:
        self.saved, self.tensor = saved, tensor.detach()  # its history would keep the graph alive in a circle
        saved.take(self.tensor)

    def __del__(self) -> None:
        self.saved.give(self.tensor)


def storages(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of these tensors, each counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _optimizers(strategy: Any) -> Iterable[torch.optim.Optimizer]:
    for wrapper in strategy.optimizers:
        mcore = wrapper.mcore_optimizer
        for one in getattr(mcore, "chained_optimizers", [mcore]):
            yield one.optimizer


def held(strategy: Any) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer on this rank; the first step must be done."""
    parameters = [p for chunk in strategy.megatron_parallel for p in chunk.parameters()]
    ours = {p.untyped_storage().data_ptr() for p in parameters}
    gradients = [buffer.grad_data for chunk in strategy.model for buffer in chunk.buffers]
    states = [t for o in _optimizers(strategy) for s in o.state.values() for t in s.values() if isinstance(t, Tensor)]
    main = [p for o in _optimizers(strategy) for group in o.param_groups for p in group["params"]]
    apart = [t for t in (*states, *main) if t.untyped_storage().data_ptr() not in ours]
    return {"weights": storages(parameters), "gradients": storages(gradients), "optimizer": storages(apart)}


def fit_bytes(mesh: Any, task: str, settings: Any, **options: Any) -> dict[str, int]:
    """`held` of a fit in its second step, and the most that autograd keeps in that step; arguments are those of `fit`."""
    from nemo_sdg.training.fit import fit
    from nemo_sdg.training.strategy import FitStrategy

    found: dict[str, int] = {}
    step = FitStrategy.training_step

    def watched(strategy: FitStrategy, *args: Any, **kwargs: Any) -> Tensor:
        if strategy.trainer.global_step == 0:
            return step(strategy, *args, **kwargs)
        found.update(held(strategy))
        saved = Saved(p for chunk in strategy.megatron_parallel for p in chunk.parameters())
        with saved.hooks():
            loss = step(strategy, *args, **kwargs)
        found["activations"] = saved.most
        return loss

    FitStrategy.training_step = watched
    try:
        fit(task, settings, mesh=mesh, seed=5, **options)
    finally:
        FitStrategy.training_step = step
    return found


def anonymous() -> int:
    """Bytes of anonymous memory of this process that are in use."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) << 10


class Peak(threading.Thread):
    """Watches the anonymous memory of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.most = anonymous()
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.002):
            self.most = max(self.most, anonymous())

    def growth(self) -> int:
        self.ended.set()
        self.join()
        return max(self.most, anonymous()) - self.before
