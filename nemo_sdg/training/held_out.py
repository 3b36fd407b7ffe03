"""The held-out rows of a fit: what they told while it trained, and whose weights are its result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import Models, Training
from nemo_sdg.errors import UserError
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel.agree import on_writer
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.training import samples
from nemo_sdg.training.measures import Curve, best_step
from nemo_sdg.training.reference import with_reference
from nemo_sdg.training.tasks import Task


class HeldOut:
    """What a fit is validated on.

    Raises:
        UserError: there are no such rows, or none of them can be used.
    """

    def __init__(
        self, task: Task, settings: Training, rows: Path | str | None, tokenizer: Tokenizer, max_length: int, mesh: Mesh
    ) -> None:
        if rows is None:
            raise UserError(
                "there is nothing to validate on", where=f"{task.name}.validate_every", found="no held-out rows",
                way_out=f"set data.validation_share or {task.name}.validation, or {task.name}.validate_every=null",
            )  # fmt: skip
        self.task, self.settings, self.mesh = task, settings, mesh
        self.samples = samples.read(task.held_out or task.sample, rows, tokenizer, max_length)
        self.on_told: Callable[[dict[str, Any]], None] | None = None
        """Called on rank 0 with what each validation tells."""
        self.curve: Curve = []
        """What validation has told up to now."""

    def add_reference(self, *, models: Models, start: ModelFolder, work: Path) -> None:
        """What the model that the fit starts from makes of the pairs, where the loss compares with it."""
        self.samples = with_reference(self.samples, self.settings, models=models, start=start, work=work, mesh=self.mesh)

    def resume(self, work: Path, done: int) -> None:
        """Goes on from the restart point after `done` steps, 0 from the start; what is best later is forgotten."""
        from nemo_sdg.training.checkpoint import keep_best, read_curve, step_folder

        def known() -> Curve:
            curve = read_curve(step_folder(work, done)) if done else []
            keep_best(work, curve)
            return curve

        # By the view of one rank: whether these are the best weights yet, all ranks must see alike.
        self.curve += on_writer(self.mesh, known)

    def follow(self, trainer: Any, checkpoint: Any) -> None:
        """Validates while the trainer trains, before anything else is done after a step: what is saved tells it.

        Args:
            checkpoint: the fit's `CommittedCheckpoint`.
        """
        from nemo_sdg.training.validation import Validation, take_back

        def told(trainer: Any, found: dict[str, Any]) -> None:
            if self.on_told is not None and self.mesh.writer:
                self.on_told(found)
            step, best = found["step"], best_step(self.curve)
            if not self.settings.keep_best:
                return
            if step < trainer.max_steps:
                if best == step:
                    checkpoint.save_best(trainer)
            elif best != step:
                take_back(trainer, checkpoint.best_folder(best))

        validation = Validation(
            self.samples, self.task.measure(self.settings), self.settings, self.mesh, reward=self.task.reward,
            curve=self.curve, on_told=told,
        )  # fmt: skip
        trainer.callbacks.insert(0, validation)

    def told(self) -> dict[str, Any]:
        """What the result of the fit says of it."""
        return {
            "validation": self.curve,
            "best_step": best_step(self.curve),
            "validation_rows": len(self.samples.rows),
            "validation_rows_set_aside": self.samples.set_aside,
        }
