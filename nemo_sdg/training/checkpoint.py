"""Checkpoints of a fit: NeMo's own format with the random state of each rank, whole or not there at all.

Restart points hold weights, optimizer, schedule, random states and losses; how far the data was read is their step.
The last checkpoint holds weights alone: it is the result. Of a fit that is validated it holds the best ones, which were
saved apart when they were found.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Callable

from lightning.pytorch.callbacks.model_checkpoint import ModelCheckpoint as LightningCheckpoint
from nemo.lightning.io.pl import TrainerContext
from nemo.lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.checkpoint import CheckpointException

from nemo_sdg.errors import Stopped
from nemo_sdg.parallel.agree import on_writer
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.parallel.watch import doing
from nemo_sdg.store import commit_folder
from nemo_sdg.store.files import refusing, write_file
from nemo_sdg.training import randomness, room
from nemo_sdg.training.measures import Curve, best_step
from nemo_sdg.training.result import RESULT, read
from nemo_sdg.training.stopping import StopRequest

LOSSES = "losses.json"
CURVE = "validation.json"
_NAME = re.compile(r"(step|best)-(\d{8})")


def step_folder(work: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lies."""
    return work / f"step-{step:08d}"


def best_folder(work: Path, step: int) -> Path:
    """Where the weights after `step` optimizer steps lie, if no validation before has found better ones."""
    return work / f"best-{step:08d}"


def whole_steps(work: Path, kind: str = "step") -> list[int]:
    """The steps that have a whole checkpoint in this working folder, ascending; of kind `best`, whole weights."""
    if not work.is_dir():
        return []
    matches = (_NAME.fullmatch(entry.name) for entry in work.iterdir() if entry.is_dir())
    return sorted(int(match.group(2)) for match in matches if match and match.group(1) == kind)


def read_curve(folder: Path) -> Curve:
    """What validation had told when a checkpoint was saved; one that a kill met in its commit tells it in its result."""
    if (folder / CURVE).is_file():
        return read(folder / CURVE)
    return read(folder / RESULT).get("validation", []) if (folder / RESULT).is_file() else []


def tidy(work: Path) -> None:
    """Remove what saves and removals that were killed have left."""
    for entry in (*work.glob(".step-*"), *work.glob(".best-*")):
        with contextlib.suppress(OSError):  # a rank that has not heard of a failure may still write there
            _remove(entry)


def keep_best(work: Path, curve: Curve) -> None:
    """Remove the weights that are the best neither by this curve nor where a restart point was saved: a fit that goes on
    from there may not find better ones again."""
    curves = [curve, *(read_curve(step_folder(work, step)) for step in whole_steps(work))]
    for step in set(whole_steps(work, "best")) - set(map(best_step, curves)):
        _retire(best_folder(work, step))


class CommittedCheckpoint(ModelCheckpoint):
    """NeMo's checkpoint callback that writes under another name, and renames what is on the disk on all ranks.

    NeMo writes in place beside a marker file, so a reader that does not know the marker takes a torn checkpoint for a
    whole one, and it overlooks a disk that refuses the context.

    Args:
        every: steps between restart points; None saves one only when the fit is told to stop.
        keep_last: restart points that are kept.
        seed: of the fit.
        losses: the losses of all steps done.
        curve: what validation has told up to now.
        resume_from: the restart point that the fit goes on from.
    """

    def __init__(
        self,
        work: Path,
        *,
        every: int | None,
        keep_last: int,
        seed: int,
        mesh: Mesh,
        losses: Callable[[], list[float]],
        stop: StopRequest,
        curve: Curve,
        resume_from: Path | None = None,
    ) -> None:
        super().__init__(
            dirpath=str(work), monitor=None, save_last=False, save_top_k=-1, verbose=False, always_save_context=False
        )
        self.work, self.every, self.keep_last, self.seed = work, every, keep_last, seed
        self.mesh, self.losses, self.stop, self.resume_from = mesh, losses, stop, resume_from
        self.curve = curve
        self.began = False

    def state_dict(self) -> dict[str, Any]:
        return {}  # Lightning's holds absolute paths, and the folder's names say it all

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """There is nothing to load: see `state_dict`."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Past NeMo's, which asks git and its logger for a folder that we do not use.
        LightningCheckpoint.on_train_start(self, trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        # Not before: making the loader's iterator draws from torch's generator, once more after each restart.
        if self.began:
            return
        self.began = True
        if self.resume_from is None:
            randomness.seed(self.seed, 0, self.mesh)
        else:
            randomness.restore(self.resume_from, self.mesh, otherwise=(self.seed, trainer.global_step))

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        step = trainer.global_step
        if step == trainer.max_steps or self.stop.agreed or (self.every and step % self.every == 0):
            self._save_checkpoint(trainer, str(step_folder(self.work, step)))
        if self.stop.agreed and step < trainer.max_steps:
            raise Stopped(
                "training was told to stop", where=self.work, found=f"{step} of {trainer.max_steps} steps done",
                way_out="the same command goes on from there",
            )  # fmt: skip

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """No save here: restart points are counted in steps."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """No save here: after the fit NeMo writes keys that cannot be loaded."""

    def best_folder(self, step: int) -> Path:
        return best_folder(self.work, step)

    def save_best(self, trainer: Any) -> None:
        """The weights as they are now, beside the restart points."""
        self.save_weights_only = True
        try:
            self._save_checkpoint(trainer, str(best_folder(self.work, trainer.global_step)))
        finally:
            self.save_weights_only = False

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        """Raises StoreError on all ranks when the disk cannot hold it; what was written of it is removed."""
        final, step = Path(filepath), trainer.global_step
        last = step == trainer.max_steps or self.save_weights_only
        writing = final.with_name(f".{final.name}.writing")
        parameters = (p for chunk in trainer.strategy.megatron_parallel for p in chunk.parameters())
        needed = room.bytes_needed(parameters, self.mesh, optimizer=not last)
        what = f"the {'trained model' if last else 'restart point'} after step {step}"
        told = self.work, needed, what, self._way_out()

        def make_room() -> None:
            _remove(writing)
            room.require(*told)

        on_writer(self.mesh, make_room)
        try:
            with doing("saving"), room.explained(*told):
                self._write(trainer, writing)
                if not last:
                    randomness.save(writing, self.mesh)
                on_writer(self.mesh, lambda: self._commit(trainer, writing, final))
        except BaseException:
            if self.mesh.writer:
                tidy(self.work)
            raise

    def _write(self, trainer: Any, writing: Path) -> None:
        try:
            super()._save_checkpoint(trainer, str(writing))
        except CheckpointException as error:
            # Raised on all ranks, and only the first knows why.
            if self.mesh.broadcast_object(room.is_full(error, self.work)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise RuntimeError(f"Megatron could not write {writing}") from error

    def _way_out(self) -> str:
        steps = whole_steps(self.work)
        goes_on = f"the fit then goes on after step {steps[-1]}" if steps else "the fit then begins again"
        return f"make room and give the same command again; {goes_on}"

    def _commit(self, trainer: Any, writing: Path, final: Path) -> None:
        with refusing(writing):
            TrainerContext.from_trainer(trainer).io_dump(writing / "context", yaml_attrs=["model"])
        write_file(writing / LOSSES, json.dumps(self.losses()).encode())
        if self.curve:
            write_file(writing / CURVE, json.dumps(self.curve).encode())
        commit_folder(writing, final)
        for step in whole_steps(self.work)[: -self.keep_last]:
            _retire(step_folder(self.work, step))
        keep_best(self.work, self.curve)


def _retire(folder: Path) -> None:
    # Under another name first: half of a checkpoint must not look like one.
    going = folder.with_name(f".{folder.name}.going")
    folder.rename(going)
    _remove(going)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
