"""What a fit tells TensorBoard and Weights & Biases: the loss, rate, gradient norm and speed of each step.

One rank tells, from numbers that it has anyway; TensorBoard's writer has a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl


class Curves(pl.Callback):
    """Tells the listeners of each step."""

    def __init__(self, loggers: list[Any], losses: Sequence[float], tokens: Sequence[int] | None) -> None:
        """
        Args:
            loggers: Lightning's.
            losses: of the steps that are done; the fit adds each.
            tokens: of each step, padding apart; None where nobody knows before.
        """
        self._loggers, self._losses, self._tokens = loggers, losses, tokens
        self._began = self._rate = 0.0

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self._began = time.monotonic()
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]  # the scheduler sets the next step's before the end

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        step = trainer.global_step - 1
        norm = float(trainer.strategy.grad_norm)
        values = {"loss": self._losses[-1], "learning_rate": self._rate, "gradient_norm": norm}
        if self._tokens is not None:
            values["tokens_per_second"] = self._tokens[step] / (time.monotonic() - self._began)
        for logger in self._loggers:
            logger.log_metrics(values, step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._finish("success")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._finish("failed")  # a writer keeps up to two minutes to itself

    def _finish(self, status: str) -> None:
        for logger in self._loggers:
            logger.finalize(status)
