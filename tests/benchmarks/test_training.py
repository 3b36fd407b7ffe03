"""Training beside TRL and a plain transformers loop: 25M parameters, fp32, no activation checkpointing in either.

The same rows, the same micro-batch, AdamW and clipping in both; the first steps, in which memory is found, are not
counted. Lengths are log-normal (sigma 0.7), so of a batch of 8 that is padded to its longest about half is padding.
Ratios are medians of rounds in turn; what is printed is never asserted.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import statistics
import time
from pathlib import Path
from statistics import NormalDist
from typing import Any, Callable

import numpy as np
import pytest
import torch
from benchmarks import workload
from benchmarks.bench import QUICK, THREADS, one_rank
from benchmarks.measuring import BY_PROCESSOR, Table, in_turn, ratio

from nemo_sdg.config import Models, RewardTraining, Training
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.training.fit import fit

trl = pytest.importorskip("trl", reason="trl is in the test extra")
import datasets  # noqa: E402
import transformers  # noqa: E402

transformers.utils.logging.set_verbosity_error()

MEDIAN, SIGMA, LONGEST = 220, 0.7, 1900
"""Tokens of a row."""
BATCH = 8
WARM, STEPS = 2, (2 if QUICK else 10)
"""Steps before the clock starts, and steps that it counts."""
ROUNDS = 1 if QUICK else 3
PACKED = 2048
clock = time.process_time if BY_PROCESSOR else time.perf_counter


@pytest.fixture(scope="module")
def rows(tmp_path_factory, folders):
    """The same texts as SFT dialogues and as rows of the regression format; one epoch of all steps."""
    root = tmp_path_factory.mktemp("rows")
    draw, count = np.random.default_rng(7), BATCH * (WARM + STEPS)
    words = [f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqr" for c in "stuvwxyz"]
    # Its quantiles, in any order: how much longer the longest of eight is must not hang on a few draws.
    normal = draw.permutation([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])
    lengths = np.exp(math.log(MEDIAN) + SIGMA * normal).clip(20, LONGEST)
    per_word = len(Tokenizer(folders.policy / "tokenizer.model").encode(" ".join(words))) / len(words)
    texts = [" ".join(draw.choice(words, max(1, round(length / per_word)))) for length in lengths]
    with open(root / "sft.jsonl", "w") as sft, open(root / "reward.jsonl", "w") as reward:
        for text in texts:
            turns = [{"from": "User", "value": "a", "label": None}, {"from": "Assistant", "value": text, "label": None}]
            sft.write(json.dumps({"system": "", "mask": "User", "type": None, "conversations": turns}) + "\n")
            label = [-100.0] * 4 + draw.integers(0, 5, 5).astype(float).tolist()
            reward.write(json.dumps({"text": text + "<extra_id_2>", "label": label}) + "\n")
    return root


class Steps:
    """Seconds of the counted steps, and the most memory that the process has used."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def end(self, *_: Any) -> None:
        self.ends.append(clock())

    def told(self, tokens: int) -> dict[str, float]:
        seconds = self.ends[-1] - self.ends[WARM - 1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"seconds": seconds, "tokens": tokens, "peak": peak, "steps": len(self.ends) - WARM}


def ours(mesh: Any, task: str, start: Path, rows: Path, root: Path, *, packed: bool) -> dict[str, float]:
    """One fit; packed rows hold as many samples in a step, in fewer rows."""
    from nemo_sdg.training import batches

    waited, computed = 0.0, 0
    fetch = batches.GlobalBatches.__getitems__

    def timed_fetch(self: Any, indices: list[int]) -> Any:
        nonlocal waited, computed
        began = clock()
        made = fetch(self, indices)
        waited += clock() - began
        computed += made["tokens"].numel()
        return made

    kind = RewardTraining if task == "reward" else Training
    settings = kind(
        steps=WARM + STEPS, global_batch_size=BATCH, micro_batch_size=1 if packed else BATCH, max_length=2048,
        packed_sequence_size=PACKED if packed else None, learning_rate=1e-5, warmup_steps=0,
    )  # fmt: skip
    steps = Steps()
    batches.GlobalBatches.__getitems__ = timed_fetch
    out = root / f"{task}-{time.monotonic_ns()}"
    with contextlib.redirect_stdout(None):
        result = fit(
            task, settings, models=Models(dtype="fp32"), start=start, rows=rows / f"{task}.jsonl", out=out, mesh=mesh,
            seed=1, on_step=steps.end,
        )  # fmt: skip
    told = steps.told(result["tokens"])
    return {**told, "waited": waited / (told["seconds"] * (WARM + STEPS) / STEPS), "padded": computed / result["tokens"]}


def trl_sft(mesh: Any, folder: Path, tokenizer: Path, rows: Path, root: Path) -> dict[str, float]:
    """TRL's SFTTrainer on the tokens of the same rows."""
    from nemo_sdg.training.samples import read, sft_sample

    samples = read(sft_sample, rows / "sft.jsonl", Tokenizer(tokenizer), 2048).rows
    tokens = [sample.sequences[0].tolist() for sample in samples]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="sdpa")
    steps = Steps()

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            steps.end()

    config = trl.SFTConfig(
        output_dir=str(root / "trl"), per_device_train_batch_size=BATCH, max_steps=WARM + STEPS, learning_rate=1e-5,
        lr_scheduler_type="constant", gradient_checkpointing=False, max_length=2048, packing=False, use_cpu=True,
        save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, bf16=False, seed=1,
        adam_beta2=0.98, weight_decay=0.1, max_grad_norm=1.0, dataloader_num_workers=0,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model, args=config, train_dataset=datasets.Dataset.from_dict({"input_ids": tokens}),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder), callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    return steps.told(sum(map(len, tokens)))


def transformers_reward(mesh: Any, folder: Path, tokenizer: Path, rows: Path) -> dict[str, float]:
    """Regression as it is written with transformers: batches of 8 in file order, padded to their longest."""
    from nemo_sdg.training.losses import attribute_regression
    from nemo_sdg.training.samples import read, reward_sample

    samples = read(reward_sample, rows / "reward.jsonl", Tokenizer(tokenizer), 2048).rows
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype="float32", attn_implementation="sdpa"
    ).train()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    steps, pad = Steps(), model.config.pad_token_id
    for first in range(0, len(samples), BATCH):
        batch = samples[first : first + BATCH]
        longest = max(sample.num_tokens for sample in batch)
        ids_BS = torch.full((len(batch), longest), pad)
        for row_S, sample in zip(ids_BS, batch):
            row_S[: sample.num_tokens] = sample.sequences[0]
        rewards_BA = model(ids_BS, attention_mask=(ids_BS != pad).long(), use_cache=False).logits
        loss = attribute_regression(rewards_BA, torch.stack([sample.targets for sample in batch]).float())
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        steps.end()
    return steps.told(sum(sample.num_tokens for sample in samples))


@pytest.mark.parametrize("task", ["sft", "reward"])
def test_speed(folders, rows, tmp_path, task):
    # Before any rank is forked; the ranks share what was imported.
    from nemo_sdg.training import nemo  # noqa: F401  # isort: skip
    import nemo_sdg.training.trainer  # noqa: F401

    start = folders.policy if task == "sft" else folders.reward
    tokenizer, found = start / "tokenizer.model", {}

    def run(name: str, work: Callable[..., dict[str, float]], *args: Any, **options: Any) -> Callable[[], float]:
        def once() -> float:
            told = one_rank(lambda mesh: work(mesh, *args, **options))
            found.setdefault(name, []).append(told)
            return told["seconds"]

        return once

    if task == "sft":
        peer = run("peer", trl_sft, folders.policy_hf, tokenizer, rows, tmp_path)
    else:
        peer = run("peer", transformers_reward, folders.reward_hf, tokenizer, rows)
    runs = {
        "peer": peer,
        "unpacked": run("unpacked", ours, task, start, rows, tmp_path, packed=False),
        "packed": run("packed", ours, task, start, rows, tmp_path, packed=True),
    }
    seconds = in_turn(runs, ROUNDS)
    table = Table(f"{task}: {workload.shape().num_parameters / 1e6:.1f}M parameters, {THREADS} threads, fp32, {ROUNDS} rounds")
    name = "TRL's SFTTrainer" if task == "sft" else "a padded transformers loop"
    for run_name, told in found.items():
        rate = statistics.median(one["tokens"] * one["steps"] / (one["steps"] + WARM) / one["seconds"] for one in told)
        peak = statistics.median(one["peak"] for one in told) / 2**20
        table.add(f"{name if run_name == 'peer' else run_name}: tokens/s, peak MiB", f"{rate:,.0f}, {peak:,.0f}")
    required = {"sft": ("0.9 x", "2 x of padded"), "reward": ("", "2 x")}[task]
    table.add(f"unpacked beside {name}, same micro-batch", f"{ratio(seconds['peer'], seconds['unpacked']):.2f} x", required[0])
    table.add(f"packed beside {name}, batches of {BATCH}", f"{ratio(seconds['peer'], seconds['packed']):.2f} x", required[1])
    table.add("tokens of padded batches to each real one", f"{found['unpacked'][0]['padded']:.2f}")
    table.add("packed beside our own padded batches", f"{ratio(seconds['unpacked'], seconds['packed']):.2f} x")
    waited = max(one["waited"] for kind in ("unpacked", "packed") for one in found[kind])
    table.add("loader wait of a step", f"{100 * waited:.2f} %", "below 1 %")
    table.show()
