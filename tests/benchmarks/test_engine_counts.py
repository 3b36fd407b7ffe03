"""What the engine holds, how often a pipeline stage waits, and where a decode step spends its time."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
from benchmarks import ours, workload
from benchmarks.bench import NUM_PROMPTS, QUICK, SLOTS, one_rank
from benchmarks.decode_profile import KINDS, Profile, profile_steps
from benchmarks.workload import Job
from ranks import run_ranks

import nemo_sdg.engine.cache
import nemo_sdg.engine.generate
from nemo_sdg.config import Data, Generate, Models, RunConfig
from nemo_sdg.engine.generate import Engine
from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.pipeline import Pipeline
from nemo_sdg.plan import make as make_plan

PROFILE_SLOTS = 64


def memory(mesh, folders, kv_cache_bytes):
    policy, tokenizer = load_model(folders.policy, mesh)
    wanted = ours.requests(workload.jobs(16 if QUICK else 64))
    policy.rotary_pos_emb(policy.max_sequence_length)  # which the model keeps
    before = ours.held_bytes()
    engine = Engine(policy, tokenizer, mesh, slots=SLOTS, kv_cache_bytes=kv_cache_bytes)
    for request in wanted:
        engine.submit(request)
    peak = 0
    while not engine.idle:
        engine.step()
        if engine.stats.ticks % 50 == 0 or engine.stats.ticks < 5:
            peak = max(peak, ours.held_bytes() - before)
    return peak, engine.stats.peak_blocks * engine.budget.block_bytes[0]


@pytest.mark.parametrize("kv_cache_bytes", [None, 200 << 20])
def test_memory(folders, table, kv_cache_bytes):
    """All tensors that live while the engine runs and did not before, against the plan of the same settings."""
    held, used = one_rank(memory, folders, kv_cache_bytes)
    config = RunConfig(
        models=Models(base=f"{folders.policy}", instruct=f"{folders.policy}", reward=f"{folders.reward}", dtype="fp32"),
        generate=Generate(slots=SLOTS, kv_cache_bytes=kv_cache_bytes),
        data=Data(prompts_per_round=8),
    )
    (planned,) = [model.stages[0].kv_cache for model in make_plan(config, world=1).models if model.role == "generate"]
    setting = "for full contexts" if kv_cache_bytes is None else f"set to {kv_cache_bytes >> 20} MiB"
    table.add(
        f"memory {setting}: held at the peak / the plan's {planned / 2**20:,.0f} MiB ({used / planned:.0%} in use)",
        f"{held / planned:.4f}", "0.98 to 1.02",
    )  # fmt: skip
    assert 0.98 <= held / planned <= 1.02


def pipeline(mesh, folders):
    policy, tokenizer = load_model(folders.policy, mesh)
    wanted = ours.requests(workload.jobs(NUM_PROMPTS))
    with (
        mock.patch.object(Pipeline, "forward", autospec=True, side_effect=Pipeline.forward) as forward,
        mock.patch.object(Engine, "step", autospec=True, side_effect=Engine.step) as step,
    ):
        _, engine = ours.generate(policy, tokenizer, mesh, wanted, slots=SLOTS)
    return (step.call_count, forward.call_count), engine.stats


def test_pipeline(folders, table):
    """A stage's turn is idle if no forward pass of the model runs in it; turns and passes are counted on each rank."""
    results = run_ranks(pipeline, folders, pp=2, timeout_s=600)
    stats = results[0][1]
    assert [counts for counts, _ in results] == [(stats.ticks, stats.ticks - stats.bubbles)] * 2, (
        "the engine counts other turns than it takes"
    )
    idle = 1 - sum(passes for (_, passes), _ in results) / stats.stage_ticks
    assert idle == pytest.approx(stats.idle_ticks / stats.stage_ticks)
    table.add(f"pipeline, PP2: idle among {stats.stage_ticks:,} turns of a stage", f"{idle:.2%}", "at most 10%")
    assert idle <= 0.10


def decode_profile(mesh, folders) -> Profile:
    policy, tokenizer = load_model(folders.policy, mesh)
    steps = 5 if QUICK else 15
    # About 216 keys a row, as the whole workload has in the mean.
    jobs = [Job(ids, 2 * steps + 40) for ids in workload.pieces(PROFILE_SLOTS, 200, seed=5)]
    engine = Engine(policy, tokenizer, mesh, slots=PROFILE_SLOTS)
    for request in ours.requests(jobs):
        engine.submit(request)
    while engine.stats.decode_rows < 3 * PROFILE_SLOTS:
        engine.step()
    before = replace(engine.stats)
    wrapped = {
        "attention": [(nemo_sdg.engine.cache.DecodeStep, "attend")],
        "sampling": [(nemo_sdg.engine.generate, "choose")],
    }
    found = profile_steps(engine.step, steps, wrapped)
    taken = 2 * steps + 1  # the first step under the profiler does not count
    assert engine.stats.decode_steps - before.decode_steps == taken == engine.stats.ticks - before.ticks
    assert engine.stats.decode_rows - before.decode_rows == PROFILE_SLOTS * taken, "a slot was empty"
    return found


def test_profile_of_a_decode_step(folders, table):
    found = one_rank(decode_profile, folders)
    parts = ", ".join(f"{kind} {found.share(kind):.0%}" for kind in KINDS)
    most = "; ".join(f"{name} {seconds * 1e3:.2f} ms in {calls:.0f}" for name, seconds, calls in found.others)
    print(f"\na decode step of {PROFILE_SLOTS} rows: {found.step * 1e3:.1f} ms: {parts}; of other: {most}", flush=True)
    for kind in KINDS:
        required = "at most 25%" if kind == "python" else ""
        table.add(f"decode step of {PROFILE_SLOTS} rows: {kind}", f"{found.share(kind):.1%}", required)
