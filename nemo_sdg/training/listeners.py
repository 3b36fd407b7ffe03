"""Who is told of a fit while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_sdg.config import Run
from nemo_sdg.errors import UserError


@dataclass(frozen=True)
class Listeners:
    """Who is told of a fit."""

    folder: Path | None
    """Where TensorBoard's files go; None writes none."""
    project: str | None
    """Of Weights & Biases; None tells it nothing."""
    name: str
    """What the fit is called there."""

    def loggers(self) -> list[Any]:
        """Lightning's loggers, which are NeMo's. Raises UserError where Weights & Biases cannot be told."""
        from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

        made: list[Any] = []
        if self.folder is not None:
            made.append(TensorBoardLogger(self.folder, name="", version=""))
        if self.project is not None:
            made.append(WandbLogger(project=self.project, name=self.name, save_dir=self.folder or Path.cwd()))
            try:
                made[-1].experiment  # begins the run there; otherwise the first step would
            except Exception as error:
                raise UserError(
                    "Weights & Biases does not take the curves", where="run.wandb", found=str(error).partition("\n")[0][:120],
                    way_out="log in there, set WANDB_MODE=offline to send them later, or run.wandb=null",
                ) from error  # fmt: skip
        return made

    def attach(self, trainer: Any, losses: Sequence[float], tokens: Sequence[int] | None) -> None:
        """Has them told by a trainer before anything else is done after a step: a fit that is told to stop ends there."""
        from nemo_sdg.training.curves import Curves

        trainer.callbacks.insert(0, Curves(self.loggers(), losses, tokens))

    @classmethod
    def of(cls, settings: Run, out: Path, place: str) -> Listeners | None:
        """Those that a run asks for; None is nobody.

        Args:
            out: the run's folder.
            place: where in it the model will lie, for example round-0/policy.
        """
        if not settings.tensorboard and settings.wandb is None:
            return None
        folder = out / "logs" / "tensorboard" / place if settings.tensorboard else None
        return cls(folder, settings.wandb, f"{settings.name}/{place}")
