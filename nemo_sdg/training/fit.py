"""One fit: SFT of a policy or attribute regression of a reward model, by NeMo's trainer, in this process group."""

from __future__ import annotations

import gc
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

import torch

from nemo_sdg.checkpoints.description import write_description
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import fill
from nemo_sdg.config import Models, Training, fingerprint
from nemo_sdg.engine.load import resolve_dtype
from nemo_sdg.models.nemotron import DTYPES
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel import device
from nemo_sdg.parallel.agree import on_writer
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.parallel.sums import sums_over_ranks
from nemo_sdg.parallel.topology import check_global_batch
from nemo_sdg.store import commit_file, commit_folder, digest, rows_digest, write_sums
from nemo_sdg.training import cpu, probe, samples
from nemo_sdg.training.batches import GlobalBatches
from nemo_sdg.training.held_out import HeldOut
from nemo_sdg.training.result import RESULT, committed, losses_of, work_of
from nemo_sdg.training.stopping import StopRequest
from nemo_sdg.training.tasks import Task, task_of


def fit(
    task: str,
    settings: Training,
    *,
    models: Models,
    start: Path | str,
    rows: Path,
    out: Path,
    mesh: Mesh,
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
    sequence_parallel: bool = False,
    validation: Path | str | None = None,
    on_validation: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train from `start` on `rows` and commit the result as the model folder `out`.

    A fit that was killed goes on from its last restart point, or from the start; the result is the same.

    Args:
        task: "sft" (rows in NeMo's chat format) or "reward" (rows of the regression format, or pairs).
        start: a released folder or one that a fit committed; a reward model may start from a language model.
        on_step: called on rank 0 with the number of steps done before this one and this one's mean loss.
        validation: held-out rows, where settings.validate_every is set.
        on_validation: called on rank 0 with what each validation tells.
    Returns:
        What `training.json` holds: losses, rows, tokens, rows set aside by reason, what validation told.
    Raises:
        UserError: nothing to train on, batch sizes that do not divide, a start that is no fitting checkpoint,
            a loss that is not finite, a disk that is full, or an `out` that holds another model.
        Stopped: the process was told to stop; a restart point is saved.
    """
    rows, out = Path(rows), Path(out)
    folder = ModelFolder.open(start)
    folder.shape.check_topology(mesh.tp, mesh.pp, **mesh.uneven_stages)
    if task == "sft":
        folder.require(reward=False)
    check_global_batch(settings, mesh.dp, task)
    signature = on_writer(mesh, lambda: fingerprint(_identity(task, settings, models, folder, rows, seed, validation)))
    if (done := on_writer(mesh, lambda: committed(out, signature))) is not None:
        return done
    probe.check()
    from nemo_sdg.training import nemo  # noqa: F401  (before anything else of NeMo, see there)

    with cpu.scope(), StopRequest() as stop:
        job = _Fit(task_of(task, settings), settings, models, folder, rows, out, mesh, seed, signature, stop, validation)
        job.on_step, job.sequence_parallel, job.on_validation = on_step, sequence_parallel, on_validation
        try:
            return job.run()
        finally:
            # Trainer and module refer to each other; the next model must not wait for Python to notice.
            del job
            gc.collect()
            if device.has_cuda():
                torch.cuda.empty_cache()


_FREE = ("enabled", "restart_every", "keep_last", "validation")
"""Settings that leave the result as it is."""


def _identity(
    task: str,
    settings: Training,
    models: Models,
    folder: ModelFolder,
    rows: Path,
    seed: int,
    validation: Path | str | None,
) -> dict[str, Any]:
    """What the result depends on. The topology and the restart points change no more than last digits."""
    decisive = {key: value for key, value in asdict(settings).items() if key not in _FREE}
    return {
        "task": task,
        "settings": decisive,
        "dtype": str(resolve_dtype(models.dtype, folder)),
        "start": folder.digest,
        "rows": digest(rows),
        "seed": seed,
        **({"validation": rows_digest(validation)} if settings.validate_every and validation else {}),
    }


class _Fit:
    """The parts of one fit, kept together from set-up to commit."""

    on_step: Callable[[int, float], None] | None = None
    on_validation: Callable[[dict[str, Any]], None] | None = None
    sequence_parallel = False

    def __init__(
        self,
        task: Task,
        settings: Training,
        models: Models,
        folder: ModelFolder,
        rows: Path,
        out: Path,
        mesh: Mesh,
        seed: int,
        signature: str,
        stop: StopRequest,
        validation: Path | str | None,
    ) -> None:
        self.task, self.settings, self.models, self.folder, self.stop = task, settings, models, folder, stop
        self.out, self.mesh, self.seed, self.signature = out, mesh, seed, signature
        max_length = min(settings.max_length, folder.shape.seq_length)
        tokenizer = Tokenizer(folder.tokenizer, folder.path)
        self.samples = samples.read(task.sample, rows, tokenizer, max_length)
        self.held_out: HeldOut | None = None
        if settings.validate_every:
            self.held_out = HeldOut(task, settings, validation, tokenizer, max_length, mesh)
        unit = settings.micro_batch_size * mesh.dp
        self.batches = GlobalBatches(
            self.samples.rows,
            steps=settings.steps,
            global_batch_size=settings.global_batch_size,
            seed=seed,
            unit=unit,
            padded_together=unit if mesh.pp == 1 else None,
            packed_sequence_size=settings.packed_sequence_size,
        )
        self.work = work_of(out)
        self.losses: list[float] = []

    def run(self) -> dict[str, Any]:
        from nemo_sdg.training.checkpoint import LOSSES, step_folder

        done = on_writer(self.mesh, self._prepare)
        began = time.monotonic()
        if done:
            self.losses = losses_of(step_folder(self.work, done) / LOSSES)
        if self.held_out is not None:
            self.held_out.resume(self.work, done)
        if done < self.settings.steps:
            self._train(done, step_folder(self.work, done) if done else None)
        seconds = time.monotonic() - began
        result = {
            "signature": self.signature,
            "task": self.task.name,
            "steps": self.settings.steps,
            "rows": len(self.samples.rows),
            "rows_set_aside": self.samples.set_aside,
            "first_set_aside": self.samples.first,
            "tokens": self.batches.num_tokens,
            "losses": self.losses,
        }
        trained = step_folder(self.work, self.settings.steps)
        if self.held_out is not None:
            result, trained = {**result, **self.held_out.told()}, self.held_out.chosen(self.work)
        self._commit(trained, result)
        return {**result, "seconds": seconds}

    def _prepare(self) -> int:
        """Steps that an earlier attempt at this very fit has done; the working folder of any other one goes."""
        from nemo_sdg.training.checkpoint import tidy, whole_steps

        marker = self.work / "fit"
        if not marker.is_file() or marker.read_text() != self.signature:
            shutil.rmtree(self.work, ignore_errors=True)
            commit_file(marker, self.signature.encode())
        tidy(self.work)
        return max(whole_steps(self.work), default=0)

    def _dtype_name(self) -> str:
        running = resolve_dtype(self.models.dtype, self.folder)
        return next(name for name, dtype in DTYPES.items() if dtype is running)

    def _commit(self, trained: Path, result: dict[str, Any]) -> None:
        from nemo_sdg.training.checkpoint import CURVE, LOSSES

        def describe() -> None:
            write_description(
                trained, self.folder.shape, self.folder.tokenizer, reward=self.task.reward, outputs=self.task.outputs,
                dtype=self._dtype_name(), tp=self.mesh.tp, pp=self.mesh.pp,
            )  # fmt: skip
            commit_file(trained / RESULT, json.dumps(result, indent=1).encode())
            for name in (LOSSES, CURVE):  # they stand in the result now; a kill may fall in between
                (trained / name).unlink(missing_ok=True)

        def commit() -> None:
            write_sums(trained, sums)
            commit_folder(trained, self.out)
            shutil.rmtree(self.work)

        on_writer(self.mesh, describe)
        sums = sums_over_ranks(trained, self.mesh)
        on_writer(self.mesh, commit)

    def _train(self, done: int, resume_from: Path | None) -> None:
        from nemo_sdg.training.checkpoint import CommittedCheckpoint
        from nemo_sdg.training.trainer import make_trainer

        def on_loss(step: int, loss: float) -> None:
            self.losses.append(loss)
            if self.on_step is not None and self.mesh.writer:
                self.on_step(step, loss)

        checkpoint = CommittedCheckpoint(
            self.work,
            every=self.settings.restart_every,
            keep_last=self.settings.keep_last,
            seed=self.seed,
            mesh=self.mesh,
            losses=lambda: list(self.losses),
            stop=self.stop,
            curve=[] if self.held_out is None else self.held_out.curve,
            resume_from=resume_from,
        )
        trainer, module, datamodule = make_trainer(
            self.task,
            self.settings,
            shape=self.folder.shape,
            head_bias=self.folder.contents.head_bias,
            dtype=resolve_dtype(self.models.dtype, self.folder),
            spec=self.models.spec,
            mesh=self.mesh,
            batches=self.batches,
            rows=self.samples.where,
            done=done,
            checkpoint=checkpoint,
            stop=self.stop,
            on_loss=on_loss,
            fill=self._fill,
            sequence_parallel=self.sequence_parallel,
        )
        if self.held_out is not None:
            self.held_out.follow(trainer, checkpoint, self.on_validation)
        trainer.fit(module, datamodule, ckpt_path=None if resume_from is None else str(resume_from))

    def _fill(self, model: torch.nn.Module) -> None:
        fresh = self.task.fresh_head or not self.folder.is_reward
        fill(model, self.folder, self.mesh, fresh_head_seed=self.seed if fresh else None)
