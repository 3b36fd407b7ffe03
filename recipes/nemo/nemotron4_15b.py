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


def sft_lora(start: str, rows: str, **more: Any) -> run.Partial:
    """SFT of adapters of rank 32: 4.2 GiB.

    Rank, alpha and 1e-4 are NeMo's (NVIDIA/NeMo: nemo/collections/llm/recipes/nemotron4_15b.py and peft/lora.py); the
    rest as in `sft`.
    """
    change = {"learning_rate": 1e-4, "lora": {"rank": 32, "alpha": 32.0}, **more.pop("change", {})}
    return sft(start, rows, change=change, **{"spec": "local", **more})


def preference(start: str, rows: str, **more: Any) -> run.Partial:
    """RPO on pairs from an SFT policy: 32.8 GiB.

    Batch 256 at a constant 3e-7, eta 1, an SFT weight of 1e-5, and of the published range of beta 1e-3 (arXiv 2406.11704,
    section 3.3.2). What the start makes of the pairs is computed first and kept beside the logs.
    """
    from nemo_sdg.training.recipes import finetune

    settings = dict(
        steps=1000, global_batch_size=256, micro_batch_size=1, max_length=4096, learning_rate=3e-7, warmup_steps=10,
        weight_decay=0.1, objective="rpo", beta=1e-3, eta=1.0, sft_weight=1e-5,
    )  # fmt: skip
    return finetune("preference", start, rows, settings=settings, **{**NODE, **more})


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
