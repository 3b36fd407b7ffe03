"""One step of a trainer of TRL's, in a process of its own: `python trl_step.py sft|dpo MODEL ROWS OUT`.

ROWS is JSON of token ids; OUT gets the gradients before the update as safetensors, with the loss in their metadata.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer


class Gradients(TrainerCallback):
    """What stands in the parameters before the optimizer's step."""

    found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any) -> None:
        self.found = {name: value.grad.clone() for name, value in model.named_parameters()}


class Ready:
    """Rows are tokens already; and the loss is kept as it is, which the log rounds."""

    loss = 0.0

    def _prepare_dataset(self, dataset: Dataset, *unused: Any) -> Dataset:
        return dataset

    def compute_loss(self, *args: Any, **options: Any) -> torch.Tensor:
        loss = super().compute_loss(*args, **options)
        self.loss = loss.item()
        return loss


class OneSFT(Ready, SFTTrainer):
    pass


class OneDPO(Ready, DPOTrainer):
    pass


def main(kind: str, model: str, rows: str, out: str) -> None:
    data = Dataset.from_list(json.loads(open(rows).read()))
    common = dict(
        output_dir=f"{out}.trainer", max_steps=1, per_device_train_batch_size=len(data), max_grad_norm=0.0, use_cpu=True,
        bf16=False, gradient_checkpointing=False, report_to=[], save_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model, pad_token="<unk>")
    gradients = Gradients()
    options = dict(train_dataset=data, processing_class=tokenizer, callbacks=[gradients])
    if kind == "sft":
        trainer = OneSFT(policy, args=SFTConfig(**common, max_length=None, completion_only_loss=True), **options)
    else:
        settings = DPOConfig(**common, beta=0.1, max_length=None, max_prompt_length=None, max_completion_length=None)
        trainer = OneDPO(policy, args=settings, **options)
    trainer.train()
    save_file({name: value.contiguous() for name, value in gradients.found.items()}, out, {"loss": repr(trainer.loss)})


if __name__ == "__main__":
    main(*sys.argv[1:])
