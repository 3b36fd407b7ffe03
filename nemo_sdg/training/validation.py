"""Validation while a model trains: what it makes of held-out rows after every so many steps.

Forward passes of the live model without gradients; nothing random is drawn, so a fit with validation takes the same
steps as one without. Axes: M samples.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from nemo_sdg.config import Training
from nemo_sdg.errors import UserError
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.training.forward import measured
from nemo_sdg.training.measures import Curve, Measure
from nemo_sdg.training.model import NemotronModule
from nemo_sdg.training.samples import Samples


def take_back(trainer: Any, folder: Path) -> None:
    """Puts the weights of an earlier step, where adapters train those of the adapters, into the place of the live ones."""
    found = trainer.strategy.load_checkpoint(folder, selective_restore=True)
    trainer.strategy.load_model_state_dict(found, strict=False)


def _without_wrappers(chunk: torch.nn.Module) -> torch.nn.Module:
    """What a step of training calls: NeMo's module hands on only what it knows itself, not where rewards are read."""
    while not isinstance(chunk, NemotronModule):
        chunk = chunk.module
    return chunk.module


class Validation(pl.Callback):
    """Validates after every `validate_every` steps and after the last one, on all ranks at the same time.

    Args:
        curve: what has been told so far; it is added to.
        on_told: called on every rank with what a validation tells, before a restart point of the same step is saved.
    """

    def __init__(
        self,
        samples: Samples,
        measure: Measure,
        settings: Training,
        mesh: Mesh,
        *,
        reward: bool,
        curve: Curve,
        on_told: Callable[[Any, dict[str, Any]], None],
    ) -> None:
        self.samples, self.measure, self.settings, self.mesh = samples, measure, settings, mesh
        self.reward, self.curve, self.on_told = reward, curve, on_told

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        step = trainer.global_step
        if step % self.settings.validate_every and step < trainer.max_steps:
            return
        chunks = [_without_wrappers(chunk) for chunk in trainer.strategy.megatron_parallel]
        # Rows are as long as in training.
        values_MW = measured(
            chunks, self.samples.rows, self.measure.values, self.measure.width, self.mesh, reward=self.reward,
            micro_batch_size=self.settings.micro_batch_size, packed_sequence_size=self.settings.packed_sequence_size,
        )  # fmt: skip
        self._refuse_not_finite(values_MW, step)
        told = {"step": step, **self.measure.tell(self.samples.rows, values_MW)}
        self.curve.append(told)
        self.on_told(trainer, told)

    def _refuse_not_finite(self, values_MW: Tensor, step: int) -> None:
        bad = (~values_MW.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            lines = ", ".join(str(self.samples.rows[i].line) for i in bad[:5]) + (" ..." if len(bad) > 5 else "")
            raise UserError(
                "what the model makes of a validation row is not finite", where=f"{self.samples.where}, after step {step}",
                found=f"{len(bad)} rows: lines {lines}", expected="finite numbers", way_out="lower the learning rate",
            )  # fmt: skip
