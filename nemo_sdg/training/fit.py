"""One fit: of a policy by SFT or on pairs, or of a reward model, by NeMo's trainer, in this process group."""

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
from nemo_sdg.config import PAIRS, Models, Training, fingerprint
from nemo_sdg.engine.load import resolve_dtype
from nemo_sdg.errors import StoreError
from nemo_sdg.models.nemotron import DTYPES
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel import device
from nemo_sdg.parallel.agree import on_writer
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.parallel.topology import check_global_batch
from nemo_sdg.store import commit_folder, digest, write_sums
from nemo_sdg.training import cpu, probe, reference, samples
from nemo_sdg.training.batches import GlobalBatches
from nemo_sdg.training.online import FOLDER, LiveBatches, Online, told
from nemo_sdg.training.tasks import TASKS, Task, task_of

RESULT = "training.json"


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
) -> dict[str, Any]:
    """Train from `start` on `rows` and commit the result as the model folder `out`.

    A fit that was killed goes on from its last restart point, or from the start; the result is the same.

    Args:
        task: "sft" (rows in NeMo's chat format), "preference" (pairs in NeMo-Aligner's; the start is also the reference)
            or "reward" (rows of the regression format, or pairs).
        rows: a file, or what the policy is asked and how its answers are judged while it trains.
        start: a released folder or one that a fit committed; a reward model may start from a language model.
        on_step: called on rank 0 with the number of steps done before this one and this one's mean loss.
    Returns:
        What `training.json` holds: losses, rows, tokens, rows set aside by reason.
    Raises:
        UserError: nothing to train on, batch sizes that do not divide, a start that is no fitting checkpoint,
            a loss that is not finite, or an `out` that holds another model.
    """
    out = Path(out)
    folder = ModelFolder.open(start)
    folder.shape.check_topology(mesh.tp, mesh.pp, **mesh.uneven_stages)
    if not TASKS[task].reward:
        folder.require(reward=False)
    check_global_batch(settings, mesh.dp, task)
    signature = on_writer(mesh, lambda: fingerprint(_identity(task, settings, models, folder, rows, seed)))
    if (done := on_writer(mesh, lambda: _committed(out, signature))) is not None:
        return done
    probe.check()
    from nemo_sdg.training import nemo  # noqa: F401  (before anything else of NeMo, see there)

    with cpu.scope():
        job = _Fit(task_of(task, settings), settings, models, folder, rows, out, mesh, seed, signature)
        job.start = str(start)
        job.on_step, job.sequence_parallel = on_step, sequence_parallel
        try:
            return job.run()
        finally:
            # Trainer and module refer to each other; the next model must not wait for Python to notice.
            del job
            gc.collect()
            if device.has_cuda():
                torch.cuda.empty_cache()


def _identity(
    task: str, settings: Training, models: Models, folder: ModelFolder, rows: Path | Online, seed: int
) -> dict[str, Any]:
    """What the result depends on. The topology and the restart points change no more than last digits."""
    # The start and the rows stand for what chose them.
    aside = ("enabled", "restart_every", "iterations", *PAIRS)
    decisive = {key: value for key, value in asdict(settings).items() if key not in aside}
    return {
        "task": task,
        "settings": decisive,
        "dtype": str(resolve_dtype(models.dtype, folder)),
        "start": folder.digest,
        "rows": rows.identity if isinstance(rows, Online) else digest(rows),
        "seed": seed,
    }


def _committed(out: Path, signature: str) -> dict[str, Any] | None:
    if not out.exists():
        return None
    result = out / RESULT
    found = json.loads(result.read_text()) if result.is_file() else {}
    if found.get("signature") != signature:
        raise StoreError(
            "the folder holds the result of another fit", where=out, found=found.get("signature", f"no {RESULT}"),
            expected=signature, way_out="remove it or write to another folder",
        )  # fmt: skip
    shutil.rmtree(_work(out), ignore_errors=True)  # of a fit that was killed just after its commit
    return found


def _work(out: Path) -> Path:
    """Where the restart points of a fit lie until it is done."""
    return out.with_name(f".{out.name}.fit")


def _losses(folder: Path, name: str) -> list[float]:
    """The losses up to a restart point; a fit that was killed in its commit keeps them in its result already."""
    if (folder / name).is_file():
        return json.loads((folder / name).read_text())
    return json.loads((folder / RESULT).read_text())["losses"]


class _Fit:
    """The parts of one fit, kept together from set-up to commit."""

    on_step: Callable[[int, float], None] | None = None
    sequence_parallel = False
    start = ""
    """The model that it starts from, as it was named."""

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
    ) -> None:
        self.task, self.settings, self.models, self.folder = task, settings, models, folder
        self.out, self.mesh, self.seed, self.signature = out, mesh, seed, signature
        max_length = min(settings.max_length, folder.shape.seq_length)
        self.tokenizer, self.work = Tokenizer(folder.tokenizer, folder.path), _work(out)
        self.online = rows if isinstance(rows, Online) else None
        unit = settings.micro_batch_size * mesh.dp
        options: dict[str, Any] = {
            "steps": settings.steps,
            "global_batch_size": settings.global_batch_size,
            "seed": seed,
            "unit": unit,
            "padded_together": unit if mesh.pp == 1 else None,
        }
        self.batches: GlobalBatches | LiveBatches
        if isinstance(rows, Online):
            self.batches = LiveBatches(every=rows.every, longest=max_length, **options)
        else:
            self.samples = samples.read(task.sample, rows, self.tokenizer, max_length)
            self.batches = GlobalBatches(
                self.samples.rows, packed_sequence_size=settings.packed_sequence_size, **options
            )
        self.losses: list[float] = []

    def run(self) -> dict[str, Any]:
        from nemo_sdg.training.checkpoint import LOSSES, latest_step, step_folder

        done = on_writer(self.mesh, lambda: self._prepare(latest_step))
        began = time.monotonic()
        if done:
            self.losses = _losses(step_folder(self.work, done), LOSSES)
        if done < self.settings.steps:
            if self.task.reference and self.online is None:
                self._add_reference()
            self._train(done, step_folder(self.work, done) if done else None)
        seconds = time.monotonic() - began
        result = {
            "signature": self.signature,
            "task": self.task.name,
            "steps": self.settings.steps,
            **self._data(),
            "losses": self.losses,
        }
        on_writer(self.mesh, lambda: self._commit(step_folder(self.work, self.settings.steps), result))
        return {**result, "seconds": seconds}

    def _add_reference(self) -> None:
        self.samples = reference.with_reference(
            self.samples, self.settings, models=self.models, start=self.folder, work=self.work, mesh=self.mesh
        )
        self.batches.samples = self.samples.rows

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
        return {"rows": rows, "rows_set_aside": {}, "tokens": tokens, "online": intervals}

    def _prepare(self, latest_step: Callable[[Path], int]) -> int:
        """Steps that an earlier attempt at this very fit has done; the working folder of any other one goes."""
        marker = self.work / "fit"
        if not marker.is_file() or marker.read_text() != self.signature:
            self._clear()
            self.work.mkdir(parents=True, exist_ok=True)
            marker.write_text(self.signature)
        return latest_step(self.work)

    def _clear(self) -> None:
        """Takes away what belongs to another fit, but not what says itself what it is of."""
        for entry in self.work.iterdir() if self.work.is_dir() else ():
            if not entry.match(reference.PATTERN):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _dtype_name(self) -> str:
        running = resolve_dtype(self.models.dtype, self.folder)
        return next(name for name, dtype in DTYPES.items() if dtype is running)

    def _commit(self, trained: Path, result: dict[str, Any]) -> None:
        from nemo_sdg.training.checkpoint import LOSSES

        write_description(
            trained, self.folder.shape, self.folder.tokenizer, reward=self.task.reward, dtype=self._dtype_name(),
            tp=self.mesh.tp, pp=self.mesh.pp,
        )  # fmt: skip
        if self.settings.lora.rank is not None and self.settings.lora.apart:
            from nemo_sdg.training.lora import FOLDER as ADAPTER
            from nemo_sdg.training.lora import write_adapter

            write_adapter(self.work, trained / ADAPTER, self.start, self.settings.lora, self.task.reward)
        (trained / RESULT).write_text(json.dumps(result, indent=1))
        (trained / LOSSES).unlink(missing_ok=True)  # they stand in the result now; a kill may fall in between
        if self.online is not None:
            shutil.copytree(self.work / FOLDER, trained / FOLDER, dirs_exist_ok=True)
        write_sums(trained)
        commit_folder(trained, self.out)
        shutil.rmtree(self.work)

    def _train(self, done: int, resume_from: Path | None) -> None:
        from nemo_sdg.training.trainer import make_trainer

        def on_loss(step: int, loss: float) -> None:
            self.losses.append(loss)
            if self.on_step is not None and self.mesh.writer:
                self.on_step(step, loss)

        trainer, module, datamodule = make_trainer(
            self.task,
            self.settings,
            shape=self.folder.shape,
            head_bias=self.folder.contents.head_bias,
            dtype=resolve_dtype(self.models.dtype, self.folder),
            spec=self.models.spec,
            mesh=self.mesh,
            batches=self.batches,
            done=done,
            work=self.work,
            losses=self.losses,
            on_loss=on_loss,
            fill=self._fill,
            sequence_parallel=self.sequence_parallel,
        )
        if self.online is not None:
            from nemo_sdg.training.asking import OnlineSampling

            asking = OnlineSampling(self.online, self.batches, self.tokenizer, self.mesh, self.work / FOLDER)
            trainer.callbacks.insert(0, asking)
        trainer.fit(module, datamodule, ckpt_path=None if resume_from is None else str(resume_from))

    def _fill(self, model: torch.nn.Module) -> None:
        fresh = self.task.fresh_head or not self.folder.is_reward
        fill(model, self.folder, self.mesh, fresh_head_seed=self.seed if fresh else None)
        if self.settings.lora.rank is not None:
            from nemo_sdg.models.lora import attach

            attach(model, self.folder.shape, self.settings.lora, self.seed, self.mesh)
