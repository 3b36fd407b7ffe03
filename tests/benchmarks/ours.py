"""Our engine over the benchmark's workload: all at once, or a static batch at a time."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
from benchmarks.workload import Job

from nemo_sdg.engine.generate import Engine
from nemo_sdg.engine.requests import Request, Sampling
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel.mesh import Mesh


def requests(jobs: Sequence[Job], samples: int = 1) -> list[Request]:
    """`samples` responses to each prompt, all forced to the job's length: they can neither end before nor go on."""
    made = []
    for number, job in enumerate(jobs):
        sampling = Sampling(max_tokens=job.length, min_tokens=job.length)
        made += [Request(f"p{number}", sample, job.prompt_ids, sampling, samples) for sample in range(samples)]
    return made


def drain(engine: Engine, wanted: Sequence[Request]) -> int:
    """Give the engine all requests, run it until it is idle, and return the tokens, all of which were asked for."""
    for request in wanted:
        engine.submit(request)
    made = 0
    while not engine.idle:
        for event in engine.step():
            if event.generation is not None:
                assert event.generation.finish_reason == "length", event.generation
                made += len(event.generation.token_ids)
    assert made == sum(request.sampling.max_tokens for request in wanted)
    return made


def generate(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    mesh: Mesh,
    wanted: Sequence[Request],
    *,
    slots: int,
    static: bool = False,
    **settings: Any,
) -> tuple[int, Engine]:
    """Tokens made, and the engine that made them, with its counts.

    Args:
        static: `slots` requests at a time, and the next ones when all of these are done.
    """
    engine = Engine(model, tokenizer, mesh, slots=slots, **settings)
    at_once = slots if static else len(wanted)
    made = sum(drain(engine, wanted[start : start + at_once]) for start in range(0, len(wanted), at_once))
    return made, engine


def held_bytes() -> int:
    """Bytes of all tensors that live now, each memory once."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
