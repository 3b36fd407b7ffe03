"""One fit: of a policy by SFT or on pairs, or of a reward model, by NeMo's trainer, in this process group."""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable

import torch

from nemo_sdg.checkpoints.description import write_description
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import fill
from nemo_sdg.config import Models, Training, fingerprint, validate_training
from nemo_sdg.engine.load import resolve_dtype
from nemo_sdg.errors import ConfigError
from nemo_sdg.models.nemotron import DTYPE_NAMES
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel import device, stopping
from nemo_sdg.parallel.agree import on_writer
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.parallel.sums import sums_over_ranks
from nemo_sdg.parallel.topology import check_global_batch
from nemo_sdg.parallel.watch import doing
from nemo_sdg.store import commit_file, commit_folder, write_sums
from nemo_sdg.training import cpu, probe, reference, samples
from nemo_sdg.training.batches import GlobalBatches, layout
from nemo_sdg.training.forward import interleaved
from nemo_sdg.training.held_out import HeldOut
from nemo_sdg.training.online import FOLDER, LiveBatches, Online, told
from nemo_sdg.training.listeners import Listeners
from nemo_sdg.training.result import RESULT, clear, committed, identity, losses_at, prepare, work_folder
from nemo_sdg.training.stopping import StopRequest
from nemo_sdg.training.tasks import TASKS, Task, task_of


def fit(
    task: str,
    settings: Training,
    *,
    models: Models,
    start: Path | str,
    rows: Path | Online,
    out: Path,
    mesh: Mesh,
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
    sequence_parallel: bool = False,
    listeners: Listeners | None = None,
    virtual_stages: int = 1,
    validation: Path | str | None = None,
    on_validation: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train from `start` on `rows` and commit the result as the model folder `out`.

    A fit that was killed goes on from its last restart point, or from the start; the result is the same.

    Args:
        task: "sft" (rows in NeMo's chat format), "preference" (pairs in NeMo-Aligner's; the start is also the reference)
            or "reward" (rows of the regression format, or pairs).
        rows: a file, or what the policy is asked and how its answers are judged while it trains.
        start: a released folder or one that a fit committed; a reward model may start from a language model.
        on_step: called on rank 0 with the number of steps done before this one and this one's mean loss.
        listeners: who else is told of each step.
        validation: held-out rows, where settings.validate_every is set.
        on_validation: called on rank 0 with what each validation tells.
    Returns:
        What `training.json` holds: losses, rows, tokens, rows set aside by reason, what validation told.
    Raises:
        UserError: a setting or a start that does not fit, nothing to train on, batch sizes that do not divide, a loss
            that is not finite, a disk that is full, or an `out` that holds another model.
        Stopped: the process was told to stop; a restart point of the steps that are done is there.
    """
    out = Path(out)
    folder = ModelFolder.open(start)
    validate_training(task, settings)
    folder.shape.check_topology(mesh.tp, mesh.pp, **mesh.uneven_stages, virtual_stages=virtual_stages)
    if not TASKS[task].reward:
        folder.require(reward=False)
    elif settings.lora.rank is not None and settings.lora.apart and folder.contents.head_bias:
        raise ConfigError(
            "adapters that are kept apart cannot carry the bias of a reward head", where=f"{task}.lora.apart",
            found=f"true with {folder.path}, whose head has one", expected="false",
        )  # fmt: skip
    check_global_batch(settings, mesh.dp, task, mesh.pp if virtual_stages > 1 else 1)
    if isinstance(rows, Online):
        rows.check(task, settings, virtual_stages)
    signature = on_writer(mesh, lambda: fingerprint(identity(task, settings, models, folder, rows, seed, validation)))
    if (done := on_writer(mesh, lambda: committed(out, signature))) is not None:
        return done
    probe.check()
    from nemo_sdg.training import nemo  # noqa: F401  (before anything else of NeMo, see there)

    with cpu.scope(), stopping.listening(late=True), interleaved(virtual_stages):
        job = _Fit(task_of(task, settings), settings, models, folder, rows, out, mesh, seed, signature, virtual_stages)
        job.validate_on(validation, on_validation)
        job.start, job.on_step, job.listeners = str(start), on_step, listeners
        job.sequence_parallel = sequence_parallel
        try:
            return job.run()
        finally:
            # Trainer and module refer to each other; the next model must not wait for Python to notice.
            del job
            gc.collect()
            if device.has_cuda():
                torch.cuda.empty_cache()


class _Fit:
    """The parts of one fit, kept together from set-up to commit."""

    on_step: Callable[[int, float], None] | None = None
    sequence_parallel = False
    listeners: Listeners | None = None
    held_out: HeldOut | None = None
    start = ""

    def __init__(
        self,
        task: Task,
        settings: Training,
        models: Models,
        folder: ModelFolder,
        rows: Path | Online,
        out: Path,
        mesh: Mesh,
        seed: int,
        signature: str,
        virtual_stages: int,
    ) -> None:
        self.task, self.settings, self.models, self.folder, self.stop = task, settings, models, folder, StopRequest()
        self.out, self.mesh, self.seed, self.signature = out, mesh, seed, signature
        self.virtual_stages = virtual_stages
        max_length = min(settings.max_length, folder.shape.seq_length)
        self.tokenizer, self.work = Tokenizer(folder.tokenizer, folder.path), work_folder(out)
        self.online = rows if isinstance(rows, Online) else None
        options = layout(settings, mesh, seed, virtual_stages)
        self.batches: GlobalBatches | LiveBatches
        if isinstance(rows, Online):
            sequences = 2 if task.reference else 1
            self.batches = LiveBatches(every=rows.every, longest=max_length, sequences=sequences, **options)
        else:
            self.samples = samples.read(task.sample, rows, self.tokenizer, max_length)
            packed = settings.packed_sequence_size
            self.batches = GlobalBatches(self.samples.rows, packed_sequence_size=packed, **options)
        self.losses: list[float] = []

    def validate_on(self, rows: Path | str | None, on_told: Callable[[dict[str, Any]], None] | None) -> None:
        """Reads the held-out rows, if the settings want them."""
        if self.settings.validate_every:
            max_length = min(self.settings.max_length, self.folder.shape.seq_length)
            self.held_out = HeldOut(self.task, self.settings, rows, self.tokenizer, max_length, self.mesh)
            self.held_out.on_told = on_told

    def run(self) -> dict[str, Any]:
        from nemo_sdg.training.checkpoint import LOSSES, step_folder

        done = on_writer(self.mesh, lambda: prepare(self.work, self.signature))
        began = time.monotonic()
        if done:
            self.losses = on_writer(self.mesh, lambda: losses_at(step_folder(self.work, done), LOSSES))
        if self.held_out is not None:
            self.held_out.resume(self.work, done)
        if done < self.settings.steps:
            if self.task.reference:
                self._add_reference()
            self._train(done, step_folder(self.work, done) if done else None)
        seconds = time.monotonic() - began
        result = {
            "signature": self.signature,
            "task": self.task.name,
            "steps": self.settings.steps,
            **self._data(),
            "losses": self.losses,
            **(self.held_out.told() if self.held_out is not None else {}),
        }
        self._commit(step_folder(self.work, self.settings.steps), result)
        return {**result, "seconds": seconds}

    def _add_reference(self) -> None:
        """What the start makes of the pairs that are known before the fit."""
        of = {"models": self.models, "start": self.folder, "work": self.work}
        with interleaved(1):
            if self.online is None:
                self.samples = reference.with_reference(self.samples, self.settings, mesh=self.mesh, **of)
                self.batches.samples = self.samples.rows
            if self.held_out is not None:
                self.held_out.add_reference(**of)

    def _data(self) -> dict[str, Any]:
        """What was learned from."""
        if isinstance(self.batches, GlobalBatches):
            return {
                "rows": len(self.samples.rows),
                "rows_set_aside": self.samples.set_aside,
                "first_set_aside": self.samples.first,
                "tokens": self.batches.num_tokens,
            }
        intervals = on_writer(self.mesh, lambda: told(self.work / FOLDER))
        rows, tokens = (sum(one[key] for one in intervals) for key in ("kept", "tokens"))
        set_aside = sum((Counter(one["set_aside"]) for one in intervals), Counter())
        return {"rows": rows, "rows_set_aside": dict(set_aside), "tokens": tokens, "online": intervals}

    def _dtype_name(self) -> str:
        return DTYPE_NAMES[resolve_dtype(self.models.dtype, self.folder)]

    def _commit(self, trained: Path, result: dict[str, Any]) -> None:
        from nemo_sdg.training.checkpoint import CURVE, LOSSES

        def describe() -> None:
            write_description(
                trained, self.folder.shape, self.folder.tokenizer, reward=self.task.reward, outputs=self.task.outputs,
                dtype=self._dtype_name(), tp=self.mesh.tp, pp=self.mesh.pp,
            )  # fmt: skip
            if self.settings.lora.rank is not None and self.settings.lora.apart:
                from nemo_sdg.training.lora import FOLDER as ADAPTER
                from nemo_sdg.training.lora import write_adapter

                write_adapter(self.work, trained / ADAPTER, self.start, self.settings.lora, self.task.reward)
            commit_file(trained / RESULT, json.dumps(result, indent=1).encode())
            for name in (LOSSES, CURVE):  # they stand in the result now; a kill may fall in between
                (trained / name).unlink(missing_ok=True)
            if self.online is not None:
                shutil.copytree(self.work / FOLDER, trained / FOLDER, dirs_exist_ok=True)

        def commit() -> None:
            write_sums(trained, sums)
            commit_folder(trained, self.out)
            clear(self.work)

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
            rows=self.samples.where if self.online is None else self.work / FOLDER,
            done=done,
            checkpoint=checkpoint,
            stop=self.stop,
            on_loss=on_loss,
            fill=self._fill,
            sequence_parallel=self.sequence_parallel,
            virtual_stages=self.virtual_stages,
        )
        if self.online is not None:
            from nemo_sdg.training.asking import OnlineSampling

            held = None
            if self.task.reference:
                held = reference.HeldReference(self.folder, self.models, self.settings.micro_batch_size, self.mesh)
            asking = OnlineSampling(self.online, self.batches, self.tokenizer, self.mesh, self.work / FOLDER, held)
            trainer.callbacks.insert(0, asking)
        if self.held_out is not None:
            self.held_out.follow(trainer, checkpoint)
        if (listeners := self.listeners) is not None:
            on_writer(self.mesh, lambda: listeners.attach(trainer, self.losses, getattr(self.batches, "step_tokens", None)))
        with doing(self.task.name):
            trainer.fit(module, datamodule, ckpt_path=None if resume_from is None else str(resume_from))

    def _fill(self, model: torch.nn.Module) -> None:
        fresh = self.task.fresh_head or not self.folder.is_reward
        with doing(f"loading {self.folder.path}"):
            fill(model, self.folder, self.mesh, fresh_head_seed=self.seed if fresh else None, give_up=stopping.known)
            stopping.heed_any(self.mesh, everyone=True)
        if self.settings.lora.rank is not None:
            from nemo_sdg.models.lora import attach

            attach(model, self.folder.shape, self.settings.lora, self.seed, self.mesh)
