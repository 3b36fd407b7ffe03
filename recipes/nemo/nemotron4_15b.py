"""Nemotron-4 15B as NeMo 2 recipes on one node of eight GPUs with 80 GB: TP 8 with sequence parallelism.

Not run on a GPU by its authors. Memory is what `nemo_sdg.plan` says of weights, gradients and optimizer on a rank; what
is left of the GPU is for activations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import nemo_run as run

NODE = {"tp": 8, "sequence_parallel": True, "gpus_per_node": 8}


def sft(start: str, rows: str, **more: Any) -> run.Partial:
    """SFT of all weights: 32.8 GiB.

    Batch and weight decay as for Nemotron-4 340B (arXiv 2406.11704, section 3.3.1); 5e-6 is NeMo's rate for this size
    (NVIDIA/NeMo: nemo/collections/llm/recipes/nemotron4_15b.py).
    """
    from nemo_sdg.training.recipes import finetune

    settings = dict(
        steps=1000, global_batch_size=128, micro_batch_size=1, max_length=4096, learning_rate=5e-6, warmup_steps=10,
        weight_decay=0.1,
    )  # fmt: skip
    return finetune("sft", start, rows, settings=settings, **{**NODE, **more})


def reward(start: str, rows: str, **more: Any) -> run.Partial:
    """A reward model from HelpSteer2: 29.5 GiB.

    Batch, steps (two epochs of 20,324 rows) and warm-up as for Nemotron-4-340B-Reward (arXiv 2406.08673, appendix I);
    2e-6 is what NVIDIA/NeMo-Aligner: docs/user-guide/steerlm.rst gives for a model of 70B.
    """
    from nemo_sdg.training.recipes import finetune

    settings = dict(
        steps=317, global_batch_size=128, micro_batch_size=2, max_length=4096, learning_rate=2e-6, warmup_steps=10,
        weight_decay=0.1,
    )  # fmt: skip
    return finetune("reward", start, rows, settings=settings, **{**NODE, **more})
