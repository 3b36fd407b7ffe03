"""transformers on the same weights, as fast as it goes: what our engine is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Sequence

import numpy as np
import torch
import transformers
from benchmarks.workload import Job

transformers.utils.logging.set_verbosity_error()


def policy(folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype="float32", attn_implementation="sdpa"
    ).eval()


def reward(folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, torch_dtype="float32", attn_implementation="sdpa"
    ).eval()


@torch.inference_mode()
def generate(model: torch.nn.Module, jobs: Sequence[Job], batch_size: int) -> int:
    """Run all jobs in batches and return the useful tokens: what each job was forced to have, and no more.

    A batch ends with its longest member, whose length is `max_new_tokens`. Nothing else ends it, so that transformers
    pays for no stopping criterion and no logits processor; the surplus tokens of shorter members are what a static
    batch costs.
    """
    pad_id = model.generation_config.pad_token_id
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        longest = max(len(job.prompt_ids) for job in batch)
        ids_BS = torch.full((len(batch), longest), pad_id)
        attended_BS = torch.zeros_like(ids_BS)
        for row, job in enumerate(batch):
            ids_BS[row, longest - len(job.prompt_ids) :] = torch.tensor(job.prompt_ids)
            attended_BS[row, longest - len(job.prompt_ids) :] = 1
        new_tokens = max(job.length for job in batch)
        made = model.generate(
            ids_BS, attention_mask=attended_BS, max_new_tokens=new_tokens, eos_token_id=None, do_sample=True,
            temperature=1.0, top_k=0, top_p=1.0,
        )  # fmt: skip
        assert made.shape == (len(batch), longest + new_tokens), "a batch ended before its longest member"
    return sum(job.length for job in jobs)


@torch.inference_mode()
def score(
    model: torch.nn.Module,
    conversations: Sequence[Sequence[int]],
    batch_size: int,
    key: Callable[[int], int] | None = None,
) -> np.ndarray:
    """Rewards float32 [rows, 9] in the order of `conversations`, in batches padded on the right.

    Args:
        key: sorts the rows into batches; None leaves them in file order.
    """
    order = sorted(range(len(conversations)), key=key) if key else list(range(len(conversations)))
    rewards_RA = np.empty((len(conversations), model.config.num_labels), dtype=np.float32)
    pad_id = model.config.pad_token_id
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = [conversations[index] for index in chosen]
        longest = max(map(len, rows))
        ids_BS = torch.full((len(rows), longest), pad_id)
        for row, ids in enumerate(rows):
            ids_BS[row, : len(ids)] = torch.tensor(ids)
        # One row alone needs no mask, and causal attention without one is faster.
        mask = {} if len(rows) == 1 else {"attention_mask": (ids_BS != pad_id).long()}
        rewards_RA[chosen] = model(ids_BS, use_cache=False, **mask).logits.numpy()
    return rewards_RA
