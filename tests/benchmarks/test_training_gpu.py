"""A training step of 1B parameters in bf16 on one GPU, and how much of the chip's matrix rate the model's FLOPs are.

Model FLOPs of a token: 6 for each parameter that a product uses, and 6 x layers x hidden x length for causal attention
(Chowdhery et al., PaLM, arXiv 2204.02311, appendix B, with half of its attention term, for the mask). Without a GPU it
runs a small model, to show that it runs, and gives no utilisation.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time

import pytest
import torch
from benchmarks.measuring import Table
from folders import make_folder, make_tokenizer
from ranks import run_ranks

from nemo_sdg.config import Models, Training
from nemo_sdg.models.shapes import NemotronShape, sizes
from nemo_sdg.parallel import device

pytestmark = pytest.mark.gpu
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0}
"""Dense bf16 products a second, from the data sheets; BENCH_PEAK_TFLOPS says another chip's."""
WARM, STEPS = 3, 7


def shape(gpu: bool) -> NemotronShape:
    if not gpu:
        return dataclasses.replace(sizes()["tiny"], vocab_size=384)
    return dataclasses.replace(
        sizes()["tiny"], num_layers=16, hidden_size=2304, ffn_hidden_size=9216, num_attention_heads=24,
        num_query_groups=8, kv_channels=96, vocab_size=384, seq_length=2048, init_method_std=0.006,
    )  # fmt: skip


def flops_per_token(of: NemotronShape, length: int) -> float:
    embedding = of.vocab_size * of.hidden_size
    return 6 * (of.num_parameters - embedding) + 6 * of.num_layers * of.num_attention_heads * of.kv_channels * length


def peak_flops() -> float | None:
    told = os.environ.get("BENCH_PEAK_TFLOPS")
    name = torch.cuda.get_device_name() if device.has_cuda() else ""
    known = next((rate for chip, rate in PEAK_TFLOPS.items() if chip in name), None)
    return float(told) * 1e12 if told else known and known * 1e12


def step_seconds(mesh, start, rows, out, length, dtype):
    from nemo_sdg.training.fit import fit

    ends = []

    def end(step, loss):
        if device.has_cuda():
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    settings = Training(
        steps=WARM + STEPS, global_batch_size=8, micro_batch_size=4, max_length=length, learning_rate=1e-6, warmup_steps=0
    )
    result = fit("sft", settings, models=Models(dtype=dtype), start=start, rows=rows, out=out, mesh=mesh, seed=1, on_step=end)
    tokens = result["tokens"] / (WARM + STEPS)
    return tokens, statistics.median(b - a for a, b in zip(ends[WARM - 1 :], ends[WARM:]))


def test_a_step_of_one_billion_parameters(tmp_path):
    import nemo_sdg.training.nemo  # noqa: F401  # isort: skip
    import nemo_sdg.training.trainer  # noqa: F401

    # The parent asks NVML, not CUDA, which could not be used in a forked rank any more.
    gpu = bool(torch.cuda.device_count())
    of, length = shape(gpu), 2048 if gpu else 128
    start = make_folder(tmp_path / "base", of, make_tokenizer(tmp_path / "tokenizer.model"))
    turns = [{"from": "User", "value": "akz"}, {"from": "Assistant", "value": "akz " * (length // 2 - 60)}]
    row = json.dumps({"system": "", "mask": "User", "type": None, "conversations": turns})
    (tmp_path / "sft.jsonl").write_text(f"{row}\n" * 8)
    dtype = "bf16" if gpu else "fp32"
    tokens, seconds = run_ranks(
        step_seconds, start, tmp_path / "sft.jsonl", tmp_path / "out", length, dtype, timeout_s=600
    )[0]
    rate = flops_per_token(of, length) * tokens / seconds
    table = Table(f"one training step, {of.num_parameters / 1e9:.3f}B parameters, {dtype}")
    table.add("tokens/s", f"{tokens / seconds:,.0f}")
    table.add("model FLOP/s", f"{rate:.3g}")
    peak = peak_flops() if gpu else None
    table.add("of the chip's rate (model FLOP utilisation)", f"{100 * rate / peak:.1f} %" if peak else "no GPU that is known")
    table.show()
