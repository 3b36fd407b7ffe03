"""NeMo's objects for one fit, put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import lightning.pytorch as pl
import nemo.lightning as nl
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo.lightning.pytorch.optim.lr_scheduler import WarmupPolicyScheduler
from torch.utils.data import DataLoader

from nemo_sdg.config import Training
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.parallel import device
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.training import probe
from nemo_sdg.training.checkpoint import CommittedCheckpoint
from nemo_sdg.training.batches import GlobalBatches
from nemo_sdg.training.lora import MergeAtTheEnd
from nemo_sdg.training.model import NemotronModule, config_of
from nemo_sdg.training.strategy import BatchSampler, FitStrategy, RunningGroup, local_world_size
from nemo_sdg.training.stopping import StopRequest
from nemo_sdg.training.tasks import Task


class TrainingData(pl.LightningDataModule):
    """The global batches of a fit; Megatron's sampler gives each replica its slice of each micro step."""

    def __init__(self, batches: GlobalBatches, settings: Training, done: int) -> None:
        super().__init__()
        self.batches = batches
        # NeMo's fine-tuning entry points ask a data module for these.
        self.micro_batch_size, self.global_batch_size = settings.micro_batch_size, batches.rows_per_step
        self.seq_length = max(batches.step_widths)
        self.data_sampler = BatchSampler(
            seq_len=self.seq_length,
            micro_batch_size=settings.micro_batch_size,
            global_batch_size=batches.rows_per_step,  # to Megatron a row is a sample, whatever it holds
            init_consumed_samples=done * batches.rows_per_step,
            init_global_step=done,
            output_log=False,
        )
        self.data_sampler.widths = batches.step_widths

    def train_dataloader(self) -> DataLoader:
        # No workers: on a CPU they would inherit gloo's sockets and keep peers of a dead rank waiting.
        return DataLoader(self.batches, collate_fn=untouched, num_workers=0)


def untouched(batch: Any) -> Any:
    """What the loader makes of a micro batch: `GlobalBatches` fetches whole ones."""
    return batch


def optimizer_fields(settings: Training, dtype: torch.dtype, distributed: bool) -> dict[str, Any]:
    """The fields of Megatron's OptimizerConfig for these settings.

    Args:
        dtype: of the weights.
        distributed: replicas share the optimizer's state.
    """
    return dict(
        optimizer="adam",
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        clip_grad=settings.clip_grad,
        use_distributed_optimizer=distributed,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
    )


def make_trainer(
    task: Task,
    settings: Training,
    *,
    shape: NemotronShape,
    head_bias: bool,
    dtype: torch.dtype,
    spec: str,
    mesh: Mesh,
    batches: GlobalBatches,
    rows: Path,
    done: int,
    checkpoint: CommittedCheckpoint,
    stop: StopRequest,
    on_loss: Callable[[int, float], None],
    fill: Callable[[Any], object],
    sequence_parallel: bool,
    virtual_stages: int,
) -> tuple[nl.Trainer, NemotronModule, TrainingData]:
    """Trainer, module and data of a fit that has `done` steps behind it.

    What holds live objects is attached after construction: NeMo copies every constructor argument into the
    checkpoint's context.
    """
    probe.check_llm()
    gpu = device.has_cuda()
    half = dtype is torch.bfloat16
    # Its shards of the optimizer's state pay off on GPUs; on a CPU it asks for CUDA tensors.
    distributed = gpu and mesh.dp > 1
    strategy = FitStrategy(
        tensor_model_parallel_size=mesh.tp,
        pipeline_model_parallel_size=mesh.pp,
        num_layers_in_first_pipeline_stage=mesh.first_stage_layers,
        num_layers_in_last_pipeline_stage=mesh.last_stage_layers,
        virtual_pipeline_model_parallel_size=virtual_stages if virtual_stages > 1 else None,
        sequence_parallel=sequence_parallel and mesh.tp > 1,
        pipeline_dtype=dtype,
        ddp=DistributedDataParallelConfig(
            grad_reduce_in_fp32=half,
            use_distributed_optimizer=distributed,
            check_for_nan_in_grad=False,  # stops single ranks; FitStrategy looks on all of them
        ),
        ckpt_async_save=False,
        ckpt_optim_fully_reshardable=True,  # a run may go on at another topology
        ckpt_parallel_save=gpu,
        ckpt_parallel_load=gpu,
        replace_progress_bar=False,  # NeMo's printer calls a collective on rank 0 alone
    )
    precision = nl.MegatronMixedPrecision(
        "bf16-mixed" if half else "32",
        params_dtype=dtype,
        pipeline_dtype=dtype,
        grad_reduce_in_fp32=half,
    )
    trainer = nl.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=local_world_size(),
        num_nodes=mesh.world_size // local_world_size(),
        strategy=strategy,
        plugins=[precision, RunningGroup()],
        max_steps=settings.steps,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    if settings.lora.rank is not None:
        trainer.callbacks.append(MergeAtTheEnd(shape, mesh, checkpoint.work if settings.lora.apart else None))
    strategy.task, strategy.mesh, strategy.rows, strategy.on_loss, strategy.stop = task.name, mesh, rows, on_loss, stop
    trainer.callbacks.append(checkpoint)
    optimizer = nl.MegatronOptimizerModule(
        OptimizerConfig(**optimizer_fields(settings, dtype, distributed)),
        WarmupPolicyScheduler(warmup_steps=settings.warmup_steps, max_steps=settings.steps, min_lr=0.0),
    )
    config = config_of(
        shape, dtype=dtype, reward=task.reward, head_bias=head_bias, spec=spec, virtual_stages=virtual_stages
    )
    module = NemotronModule(config, optim=optimizer)
    module.fill, module.objective = fill, task.objective(settings)
    return trainer, module, TrainingData(batches, settings, done)
