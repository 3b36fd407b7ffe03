"""Checkpoints of a fit: NeMo's own format, whole or not there at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Callable

from lightning.pytorch.callbacks.model_checkpoint import ModelCheckpoint as LightningCheckpoint
from nemo.lightning.pytorch.callbacks import ModelCheckpoint

from nemo_sdg.parallel.mesh import Mesh

LOSSES = "losses.json"
_NAME = re.compile(r"step-(\d{8})")


def step_folder(work: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lies."""
    return work / f"step-{step:08d}"


def latest_step(work: Path) -> int:
    """The last step that has a whole checkpoint in this working folder; 0 if none."""
    if not work.is_dir():
        return 0
    matches = (_NAME.fullmatch(entry.name) for entry in work.iterdir() if entry.is_dir())
    return max((int(match.group(1)) for match in matches if match), default=0)


class CommittedCheckpoint(ModelCheckpoint):
    """NeMo's checkpoint callback that writes under another name and renames when all ranks are done.

    NeMo writes in place beside a marker file, so a reader that does not know the marker takes a torn
    checkpoint for a whole one. Restart points hold the optimizer, the last checkpoint does not.
    """

    def __init__(self, work: Path, every: int | None, mesh: Mesh, losses: Callable[[], list[float]]) -> None:
        super().__init__(dirpath=str(work), monitor=None, save_last=False, save_top_k=-1, verbose=False)
        self.work, self.every, self.mesh, self.losses = work, every, mesh, losses

    def state_dict(self) -> dict[str, Any]:
        return {}  # Lightning's holds absolute paths, and the folder's names say it all

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """There is nothing to load: see `state_dict`."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Past NeMo's, which asks git and its logger for a folder that we do not use.
        LightningCheckpoint.on_train_start(self, trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        step = trainer.global_step
        if step == trainer.max_steps or (self.every and step % self.every == 0):
            self._save_checkpoint(trainer, str(step_folder(self.work, step)))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """No save here: restart points are counted in steps."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """No save here: after the fit NeMo writes keys that cannot be loaded."""

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        final = Path(filepath)
        writing = final.with_name(f".{final.name}.writing")
        if self.mesh.writer:
            shutil.rmtree(writing, ignore_errors=True)
        self.mesh.barrier()
        super()._save_checkpoint(trainer, str(writing))
        self.mesh.barrier()
        if self.mesh.writer:
            if not (writing / "context" / "io.json").is_file():
                raise RuntimeError(f"NeMo did not write its context to {writing}; its log says why")
            (writing / LOSSES).write_text(json.dumps(self.losses()))
            os.rename(writing, final)
            for older in self.work.glob("step-*"):
                if older != final:
                    shutil.rmtree(older)
        self.mesh.barrier()
