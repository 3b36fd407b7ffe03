"""Nemotron-4 340B as NeMo 2 recipes: TP 8 within a node of eight GPUs with 80 GB, PP 12 over nodes.

Not run at this size by its authors. Memory is what `nemo_sdg.plan` says of weights, gradients and optimizer on a rank,
with so many replicas as share the optimizer's state; what is left of the GPU is for activations. Eight virtual stages of
one layer each and TP 8 x PP 12 are those of the model's pretraining (arXiv 2406.11704, section 2.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import nemo_run as run

CLUSTER = {
    "tp": 8, "pp": 12, "virtual_stages": 8, "sequence_parallel": True, "gpus_per_node": 8, "num_nodes": 24,
    "recompute": True,
}  # fmt: skip


def sft(start: str, rows: str, **more: Any) -> run.Partial:
    """General SFT of all weights on 192 GPUs, two replicas: 45.2 GiB.

    200,000 dialogues, three epochs, batch 128 are 4,687 steps; the rate was searched within 1e-7 to 5e-7, and code SFT had
    3e-7 (arXiv 2406.11704, section 3.3.1). AdamW with betas 0.9 and 0.98, weight decay 0.1 and ten steps of warm-up stand
    in the configuration that is shipped with Nemotron-4-340B-Instruct.
    """
    from nemo_sdg.training.recipes import finetune

    settings = dict(
        steps=4687, global_batch_size=128, micro_batch_size=1, max_length=4096, learning_rate=3e-7, warmup_steps=10,
        weight_decay=0.1,
    )  # fmt: skip
    return finetune("sft", start, rows, settings=settings, **{**CLUSTER, **more})


def sft_lora(start: str, rows: str, **more: Any) -> run.Partial:
    """SFT of adapters of rank 32 on 32 GPUs, TP 8 x PP 4: 21.7 GiB.

    TP 8 x PP 4, rank, alpha and 1e-4 are NeMo's (NVIDIA/NeMo: nemo/collections/llm/recipes/nemotron4_340b.py and
    peft/lora.py); the rest as in `sft`.
    """
    change = {"learning_rate": 1e-4, "lora": {"rank": 32, "alpha": 32.0}, **more.pop("change", {})}
    return sft(start, rows, change=change, **{"pp": 4, "num_nodes": 4, "spec": "local", **more})


def preference(start: str, rows: str, **more: Any) -> run.Partial:
    """RPO on pairs from an SFT policy on 192 GPUs, two replicas: 45.2 GiB.

    Batch 256 at a constant 3e-7, eta 1, an SFT weight of 1e-5, and of the published range of beta 1e-3 (arXiv 2406.11704,
    section 3.3.2). What the start makes of the pairs is computed first and kept beside the logs.
    """
    from nemo_sdg.training.recipes import finetune

    settings = dict(
        steps=1000, global_batch_size=256, micro_batch_size=1, max_length=4096, learning_rate=3e-7, warmup_steps=10,
        weight_decay=0.1, objective="rpo", beta=1e-3, eta=1.0, sft_weight=1e-5,
    )  # fmt: skip
    return finetune("preference", start, rows, settings=settings, **{**CLUSTER, **more})


def reward(start: str, rows: str, **more: Any) -> run.Partial:
    """The reward model from HelpSteer2 on 192 GPUs, two replicas: 45.2 GiB.

    Two epochs of 20,324 rows, batch 128, AdamW at a constant 7e-7 after ten steps (arXiv 2406.08673, section 3 and
    appendix I).
    """
    from nemo_sdg.training.recipes import finetune

    settings = dict(
        steps=317, global_batch_size=128, micro_batch_size=1, max_length=4096, learning_rate=7e-7, warmup_steps=10,
        weight_decay=0.1,
    )  # fmt: skip
    return finetune("reward", start, rows, settings=settings, **{**CLUSTER, **more})
