"""Fits as NeMo 2 recipes: `run.Partial(llm.finetune, ...)` with our model, rows and losses, for NeMo's own trainer.

`finetune` puts one together; the functions in recipes/nemo/ call it with the parallelism and hyper-parameters of a size.
Everything in it is `run.Config`, so that a user changes any field before the run, as in NeMo's own recipes.
"""

from __future__ import annotations

from typing import Any

import nemo_run as run
from nemo_sdg.training.nemo import llm  # isort: skip  (before anything else of NeMo, see there)
import nemo.lightning as nl
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo.collections.llm.recipes.log.default import default_resume, tensorboard_logger, wandb_logger
from nemo.lightning.pytorch.optim.lr_scheduler import WarmupPolicyScheduler
from nemo.utils.exp_manager import TimingCallback

from nemo_sdg.config import Training
from nemo_sdg.models.nemotron import DTYPES
from nemo_sdg.training.finetuned import Checkpoints, FineTuned, Rows, model_config, settings_of
from nemo_sdg.training.trainer import optimizer_fields


def finetune(
    task: str,
    start: str,
    rows: str,
    *,
    settings: dict[str, Any],
    change: dict[str, Any] | None = None,
    tp: int = 1,
    pp: int = 1,
    virtual_stages: int = 1,
    sequence_parallel: bool = False,
    num_nodes: int = 1,
    gpus_per_node: int = 8,
    dtype: str = "bf16",
    spec: str = "auto",
    recompute: bool = False,
    seed: int = 1234,
    dir: str | None = None,
    name: str = "default",
    save_every: int = 50,
    wandb_project: str | None = None,
) -> run.Partial:
    """A fine-tuning recipe for NeMo 2.

    Args:
        task: sft, preference or reward.
        start: released, Hugging Face or NeMo 2 folder to begin with, also behind hf://.
        rows: the training rows, in the format of the task.
        settings: fields of `config.Training`, or of the class that the task has.
        change: settings that differ from those.
        virtual_stages: chunks of layers of each pipeline stage (interleaved schedule).
        dtype: bf16 with fp32 main weights and gradients; fp32 and fp64 train in that dtype.
        spec: local, te (TransformerEngine), or auto (te where it is).
        recompute: keep only the inputs of layers for the backward pass.
        dir: where NeMo's logger puts checkpoints and TensorBoard's files; null is ./nemo_experiments.
        wandb_project: log to Weights & Biases, too.
    """
    settings = {**settings, **(change or {})}
    given = settings_of(task, settings)
    half, torch_dtype = dtype == "bf16", DTYPES[dtype]
    replicas = num_nodes * gpus_per_node // (tp * pp)
    distributed = half and replicas > 1
    return run.Partial(
        llm.finetune,
        model=run.Config(
            FineTuned,
            config=run.Config(
                model_config, start, task, dtype=dtype, spec=spec, recompute=recompute, virtual_stages=virtual_stages
            ),
            task=task,
            settings=settings,
            start=start,
            seed=seed,
        ),
        data=run.Config(Rows, rows=rows, task=task, settings=settings, start=start, seed=seed),
        trainer=run.Config(
            nl.Trainer,
            accelerator="gpu",
            devices=gpus_per_node,
            num_nodes=num_nodes,
            max_steps=given.steps,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,
            callbacks=[run.Config(TimingCallback)],
            plugins=run.Config(
                nl.MegatronMixedPrecision,
                precision="bf16-mixed" if half else "32",
                params_dtype=torch_dtype,
                pipeline_dtype=torch_dtype,
                grad_reduce_in_fp32=half,
            ),
            strategy=run.Config(
                nl.MegatronStrategy,
                tensor_model_parallel_size=tp,
                pipeline_model_parallel_size=pp,
                virtual_pipeline_model_parallel_size=virtual_stages if virtual_stages > 1 else None,
                microbatch_group_size_per_vp_stage=turn(given, replicas, pp),
                sequence_parallel=sequence_parallel and tp > 1,
                pipeline_dtype=torch_dtype,
                gradient_as_bucket_view=True,
                ckpt_async_save=False,  # NeMo's default writes behind the steps; a folder is described when it is whole
                ckpt_optim_fully_reshardable=True,
                ddp=run.Config(
                    DistributedDataParallelConfig, use_distributed_optimizer=distributed, grad_reduce_in_fp32=half
                ),
            ),
        ),
        log=run.Config(
            nl.NeMoLogger,
            name=name,
            log_dir=dir,
            tensorboard=tensorboard_logger(name=name),
            wandb=None if wandb_project is None else wandb_logger(project=wandb_project, name=name),
            ckpt=run.Config(
                Checkpoints, monitor=None, save_last=False, save_top_k=-1, every_n_train_steps=save_every,
                filename="{step}",
            ),
        ),
        optim=run.Config(
            nl.MegatronOptimizerModule,
            config=run.Config(OptimizerConfig, **optimizer_fields(given, torch_dtype, distributed)),
            lr_scheduler=run.Config(
                WarmupPolicyScheduler, warmup_steps=given.warmup_steps, max_steps=given.steps, min_lr=0.0
            ),
        ),
        resume=default_resume(),
        tokenizer=None,
    )  # fmt: skip


def turn(settings: Training, replicas: int, pp: int) -> int:
    """Micro batches that a virtual stage computes before the next one of its rank takes over.

    Megatron takes PP and more, and no fewer in the last turn; its default of PP would refuse 64 micro batches at PP 12.
    Packed rows are a multiple of PP, so that PP is right for them.
    """
    micro_batches = settings.global_batch_size // (settings.micro_batch_size * max(1, replicas))
    if settings.packed_sequence_size is not None:
        return pp
    return next((size for size in range(pp, micro_batches + 1) if micro_batches % size == 0), pp)
