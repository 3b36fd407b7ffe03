"""What a NeMo 2 recipe is made of: a module that fills itself from a model folder, rows, checkpoints that are folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from nemo_sdg.training import nemo  # noqa: F401  isort: skip  (before anything else of NeMo, see there)
import nemo.lightning as nl
from megatron.core.models.gpt import GPTModel
from nemo.lightning import io
from nemo.lightning.io.pl import ckpt_to_dir
from nemo.utils.app_state import AppState
from torch import Tensor
from torch.utils.data import DataLoader

from nemo_sdg.checkpoints.description import write_description
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import fill
from nemo_sdg.config import Lora, Models, Preference, RewardTraining, Training, flatten, validate_training
from nemo_sdg.errors import ConfigError
from nemo_sdg.models.lora import attach
from nemo_sdg.models.nemotron import DTYPE_NAMES, DTYPES
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel.mesh import current
from nemo_sdg.parallel.topology import check_global_batch
from nemo_sdg.training import samples
from nemo_sdg.training.batches import GlobalBatches, layout
from nemo_sdg.training.forward import interleaved
from nemo_sdg.training.lora import MergeAtTheEnd
from nemo_sdg.training.model import NemotronConfig, NemotronModule, TargetLoss, config_of
from nemo_sdg.training.reference import with_reference
from nemo_sdg.training.strategy import BatchSampler
from nemo_sdg.training.tasks import task_of
from nemo_sdg.training.trainer import untouched

GROUPS: dict[str, type[Training]] = {"sft": Training, "preference": Preference, "reward": RewardTraining}
"""The class of settings of each task."""
_OWN_FITS = ("restart_every", "keep_last", "validate_every", "validation", "keep_best", "iterations", "lora.apart")
"""Settings of what NeMo does in its own way, or not at all."""


def model_config(
    start: str, task: str, *, dtype: str, spec: str = "auto", recompute: bool = False, virtual_stages: int = 1
) -> NemotronConfig:
    """NeMo's config of the model in a folder, whatever its format and size.

    Args:
        recompute: keep only the input of each layer and compute the rest again in the backward pass.
    """
    contents, more = ModelFolder.open(start).contents, {}
    if recompute:
        more |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return config_of(
        contents.shape, dtype=DTYPES[dtype], reward=task == "reward", head_bias=contents.head_bias, spec=spec,
        virtual_stages=virtual_stages, **more,
    )  # fmt: skip


class FineTuned(NemotronModule):
    """The Lightning module of a recipe: it fills itself from a model folder, each rank with the bytes of its shard."""

    __wrapped_init__ = False  # see NemotronConfig

    def __init__(
        self,
        config: NemotronConfig,
        task: str,
        settings: dict[str, Any],
        start: str,
        seed: int,
        optim: Any = None,
        tokenizer: Any = None,
        model_transform: Any = None,
    ) -> None:
        """
        Args:
            settings: fields of `config.Training`, or of the class that the task has.
            start: released, Hugging Face or NeMo 2 folder to begin with, also behind hf://.
            seed: of a fresh reward head and of adapters.
        """
        super().__init__(config, optim=optim, tokenizer=tokenizer, model_transform=model_transform)
        self.start, self.seed, self.settings = start, seed, settings_of(task, settings)
        self.task = task_of(task, self.settings)
        self.objective = self.task.objective(self.settings)
        self.fill = self._fill

    def io_init(self, **arguments: Any) -> Any:
        """NeMo's note of what this is made of: the first one. A parent's constructor would note its own arguments after it."""
        known = vars(self).get("__io__")
        return super().io_init(**arguments) if known is None else known

    def _fill(self, model: GPTModel) -> None:
        folder, mesh = ModelFolder.open(self.start), current()
        fresh = self.task.fresh_head or not folder.is_reward
        fill(model, folder, mesh, fresh_head_seed=self.seed if fresh else None)
        if self.settings.lora.rank is not None:
            attach(model, folder.shape, self.settings.lora, self.seed, mesh)

    @property
    def training_loss_reduction(self) -> TargetLoss:
        if self._training_loss_reduction is None:
            self._training_loss_reduction = _Loss(self.objective)
        return self._training_loss_reduction

    def on_fit_start(self) -> None:
        if self.settings.lora.rank is not None:
            self.trainer.callbacks.insert(0, MergeAtTheEnd(ModelFolder.open(self.start).shape, current(), None))


class _Loss(TargetLoss):
    """In fp32: NeMo sends it to the stage that logs, which expects so many bytes."""

    def reduce(self, losses_reduced_per_micro_batch: list[dict[str, Tensor]]) -> Tensor:
        return super().reduce(losses_reduced_per_micro_batch).float()


def settings_of(task: str, fields: dict[str, Any]) -> Training:
    """The settings of a task from their fields by name.

    Raises:
        ConfigError: a value that may not be so, or a field that only our own fits heed.
    """
    settings = GROUPS[task](**{**fields, "lora": Lora(**fields.get("lora", {}))})
    validate_training(task, settings)
    values, usual = flatten(settings), flatten(GROUPS[task]())
    for key in _OWN_FITS:
        if values.get(key) != usual.get(key):
            raise ConfigError(
                "NeMo's trainer does not heed this setting", where=f"{task}.{key}", found=values[key],
                expected=usual[key], way_out="change the recipe's own callbacks, logger and trainer, or use nemo-sdg run",
            )  # fmt: skip
    return settings


class Rows(pl.LightningDataModule, io.IOMixin):
    """Training rows of a file, shuffled, packed if asked for, and cut over the replicas, the same at any TP x PP."""

    def __init__(self, rows: str, task: str, settings: dict[str, Any], start: str, seed: int) -> None:
        """
        Args:
            rows: NeMo's SFT chat format, or NeMo-Aligner's pairs or regression format; as `task` wants it.
            settings: fields of `config.Training`, or of the class that the task has.
            start: the model folder that has the tokenizer.
        """
        super().__init__()
        self.rows, self.task, self.start, self.seed = rows, task, start, seed
        self.settings = settings_of(task, settings)
        # NeMo's fine-tuning asks for these before there are ranks.
        self.micro_batch_size, self.global_batch_size = self.settings.micro_batch_size, self.settings.global_batch_size
        self.seq_length = self.settings.packed_sequence_size or self.settings.max_length
        self.data_sampler = _Sampler(self)
        self.batches: GlobalBatches | None = None

    def build(self) -> GlobalBatches:
        """The global batches, once the ranks are laid out."""
        if self.batches is None:
            folder, mesh, settings = ModelFolder.open(self.start), current(), self.settings
            task, strategy = task_of(self.task, settings), self.trainer.strategy
            virtual_stages = strategy.virtual_pipeline_model_parallel_size or 1
            turn = strategy.microbatch_group_size_per_vp_stage if virtual_stages > 1 else 1
            check_global_batch(settings, mesh.dp, self.task, turn)
            read = samples.read(
                task.sample, Path(self.rows), Tokenizer(folder.tokenizer, folder.path),
                min(settings.max_length, folder.shape.seq_length),
            )  # fmt: skip
            if task.reference:
                # Before the trainer builds the policy, so that the two are never on the device together.
                config = self.trainer.lightning_module.config
                models = Models(dtype=DTYPE_NAMES[config.params_dtype], spec=config.spec)
                with interleaved(1):
                    read = with_reference(
                        read, settings, models=models, start=folder, work=Path(AppState().log_dir), mesh=mesh
                    )
            options = layout(settings, mesh, self.seed, virtual_stages)
            self.batches = GlobalBatches(read.rows, packed_sequence_size=settings.packed_sequence_size, **options)
        return self.batches

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.build(), collate_fn=untouched, num_workers=0)

    def state_dict(self) -> dict[str, int]:
        steps = self.trainer.global_step
        return {"consumed_samples": steps * self.build().rows_per_step, "steps": steps}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.data_sampler.init_consumed_samples = state_dict["consumed_samples"]
        self.data_sampler.prev_consumed_samples = state_dict["consumed_samples"]
        self.data_sampler.init_global_step = state_dict["steps"]


class _Sampler(BatchSampler):
    """Learns what a step is when NeMo has laid out the ranks."""

    def __init__(self, data: Rows) -> None:
        super().__init__(
            seq_len=data.seq_length, micro_batch_size=data.micro_batch_size, global_batch_size=data.global_batch_size,
            output_log=False,
        )  # fmt: skip
        self._data = data

    def setup(self, global_rank: int) -> None:
        batches = self._data.build()
        self.widths, self.global_batch_size = batches.step_widths, batches.rows_per_step
        super().setup(global_rank)


class Checkpoints(nl.ModelCheckpoint):
    """NeMo's checkpoints as model folders: each says what it holds and has the tokenizer.

    The last step is saved within the fit: after it the keys could not be loaded.
    """

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        module, mesh = trainer.lightning_module, current()
        if mesh.writer:
            folder = ModelFolder.open(module.start)
            write_description(
                Path(ckpt_to_dir(filepath)), folder.shape, folder.tokenizer, reward=module.config.reward,
                outputs=module.task.outputs, dtype=DTYPE_NAMES[module.config.params_dtype], tp=mesh.tp, pp=mesh.pp,
            )  # fmt: skip

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        every = self._every_n_train_steps
        if trainer.global_step == trainer.max_steps:
            self._every_n_train_steps = 1
        super().on_train_batch_end(trainer, *args, **kwargs)
        self._every_n_train_steps = every

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The last step is saved already."""
