"""How fast the tiny world's models generate and score on one thread: medians of five runs, printed, never asserted."""

from __future__ import annotations

import platform
import statistics
import time

import torch
from ranks import run_ranks

from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.engine.rows import rate, respond
from nemo_sdg.records import Prompt, read_rows

WORLD = "package:examples/tiny/"
ROUNDS = 5


def measure(mesh, slots: int) -> dict[str, float]:
    """Useful tokens and scored rows per second, over 64 prompts with four samples each."""
    torch.set_num_threads(1)
    prompts = read_rows(WORLD + "data/prompts.jsonl", Prompt)[0][:64]
    policy, tokenizer = load_model(WORLD + "instruct", mesh)
    reward, _ = load_model(WORLD + "reward", mesh, reward=True)
    sampling = Sampling(max_tokens=48)
    generated, scored = [], []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        responses, _ = respond(policy, tokenizer, mesh, prompts, sampling, samples=4, slots=slots, provenance={})
        made = time.perf_counter()
        rows, _ = rate(reward, tokenizer, mesh, responses, provenance={})
        done = time.perf_counter()
        generated.append(sum(len(row.response_token_ids) for row in responses) / (made - began))
        scored.append(len(rows) / (done - made))
    return {"tokens": statistics.median(generated[1:]), "rows": statistics.median(scored[1:])}


def test_generation_and_scoring():
    print(f"\none thread of {platform.processor() or platform.machine()}, fp32, torch {torch.__version__}")
    for slots in (16, 64, 128):
        result = run_ranks(measure, slots, timeout_s=300)[0]
        generated, scored = result["tokens"], result["rows"]
        print(f"  {slots:>3} slots: {generated:,.0f} useful tokens/s generated, {scored:,.0f} rows/s scored")
        assert result["tokens"] > 0 and result["rows"] > 0
