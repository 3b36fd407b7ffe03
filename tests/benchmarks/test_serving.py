"""Requests per second of `nemo-sdg serve` on one rank, beside the same rows without a server: printed, never asserted.

Medians of five pairs, taken in turns, on one thread of the model: 64 requests at once, 64 slots.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time

import openai
import torch
from ranks import run_ranks
from serving import POLICY, REWARD, WORLD, served

from nemo_sdg.engine.generate import generate
from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.requests import Request, Sampling
from nemo_sdg.engine.rows import tokenized
from nemo_sdg.records import Prompt, read_rows

PAIRS, ROWS, SLOTS, TOKENS = 5, 64, 64, 48


def without_a_server(mesh, prompts: list[Prompt]) -> float:
    """Seconds for all prompts in one engine; the first time does not count."""
    torch.set_num_threads(1)
    model, tokenizer = load_model(WORLD / "instruct", mesh)
    sampling = Sampling(max_tokens=TOKENS, min_tokens=TOKENS)
    requests = [Request(prompt.id, 0, tokenized(tokenizer, prompt), sampling) for prompt in prompts]
    for _ in range(2):
        began = time.perf_counter()
        generate(model, tokenizer, mesh, requests, sampling, SLOTS)
    return time.perf_counter() - began


async def through(url: str, bodies: list[dict]) -> tuple[float, list[float]]:
    """(seconds for all requests at once, seconds of each until its first byte of content)."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def one(body: dict) -> float:
            began = time.perf_counter()
            answer = await client.chat.completions.create(**body)
            first = time.perf_counter()
            if body.get("stream"):
                async with contextlib.aclosing(answer.response.aiter_lines()) as lines:
                    first = time.perf_counter() if await anext(lines) else first
                    async for _ in lines:
                        pass
            return first - began

        began = time.perf_counter()
        firsts = await asyncio.gather(*map(one, bodies))
        return time.perf_counter() - began, firsts


def test_requests_per_second():
    prompts = read_rows(WORLD / "data" / "prompts.jsonl", Prompt)[0][:ROWS]
    own = {"max_tokens": TOKENS, "extra_body": {"min_tokens": TOKENS}}
    chats = [{"model": "instruct", "messages": list(prompt.messages), **own} for prompt in prompts]
    judged = [{"role": "assistant", "content": "7"}]
    kinds = {
        "chat": chats,
        "chat, streamed": [{**body, "stream": True} for body in chats],
        "reward": [{"model": "reward", "messages": [*prompt.messages, *judged]} for prompt in prompts],
    }
    taken: dict[str, list[float]] = {name: [] for name in ("no server", *kinds)}
    firsts: list[float] = []
    with served(*POLICY, *REWARD, "--slots", str(SLOTS)) as server:
        for bodies in kinds.values():
            asyncio.run(through(server.url, bodies))
        for _ in range(PAIRS):
            taken["no server"] += run_ranks(without_a_server, prompts)
            for name, bodies in kinds.items():
                seconds, first = asyncio.run(through(server.url, bodies))
                taken[name].append(seconds)
                if name == "chat, streamed":
                    firsts += first
        assert server.stop() == 0
    print(f"\n64 requests at once, 64 slots, {TOKENS} tokens each, one thread; median of {PAIRS}")
    local = taken["no server"]
    for name, seconds in taken.items():
        ratio = statistics.median(alone / each for alone, each in zip(local, seconds))
        told = "" if name in ("no server", "reward") else f", {ratio:.2f} x the rate without a server"
        print(f"  {name:>15}: {ROWS / statistics.median(seconds):,.0f} requests/s{told}")
    print(f"  first token of a stream after {1000 * statistics.median(firsts):,.0f} ms")
