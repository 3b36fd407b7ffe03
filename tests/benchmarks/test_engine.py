"""The engine's speed beside transformers, beside a static batch of its own, and beside what the machine can do at best.

All of `tests/benchmarks/test_engine*.py` takes half an hour on a quiet machine of two cores;
what can be set is in `bench.py`. Ratios are medians of five rounds in turn, printed beside what is required; values are
asserted.
"""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from benchmarks import ours, workload
from benchmarks.bench import NUM_PROMPTS, QUICK, ROUNDS, SLOTS, one_rank
from benchmarks.floor import Floor
from benchmarks.measuring import in_turn, ratio, timed
from benchmarks.workload import Job

from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.score import score

pytest.importorskip("transformers")
from benchmarks import peers  # noqa: E402

NUM_PEER_PROMPTS = 16 if QUICK else workload.BLOCK
NUM_CONVERSATIONS = 16 if QUICK else 32


def rates(numbers: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {statistics.median(found):,.0f}" for name, found in numbers.items())


def generation(mesh, folders):
    policy, tokenizer = load_model(folders.policy, mesh)
    theirs = peers.policy(folders.policy_hf)
    jobs = workload.jobs(NUM_PROMPTS)
    few = jobs[:NUM_PEER_PROMPTS]
    counts, full = {}, []

    def peer(batch_size, some):
        seconds, tokens = timed(lambda: peers.generate(theirs, some, batch_size))
        return tokens / seconds

    def own(some=jobs, **settings):
        wanted = ours.requests(some)
        seconds, made = timed(lambda: ours.generate(policy, tokenizer, mesh, wanted, slots=SLOTS, **settings))
        tokens, engine = made
        if not settings:
            counts.update(vars(engine.stats))
        return tokens / seconds

    def floor():
        measured = Floor.measure(workload.shape(), jobs, SLOTS)
        full.append(measured.full_slots)
        counted = {name: counts[name] for name in ("decode_steps", "decode_rows", "prefill_tokens")}
        return sum(job.length for job in jobs) / measured.seconds(len(jobs), **counted)

    own(jobs[:4])
    peer(2, few[:2])
    # One row at a time wins on a CPU: it waits for no longer neighbour.
    swept = {size: peer(size, few[: len(few) // 2]) for size in ([1] if QUICK else [1, 4, 16])}
    best = max(swept, key=swept.get)
    runs = {
        "ours": own,
        "transformers": lambda: peer(best, few),
        "static": lambda: own(jobs[: workload.BLOCK], static=True),
        "any shape": lambda: own(fixed_shape=False),
        "floor": floor,
    }
    numbers = in_turn(runs, ROUNDS)
    return numbers, {size: round(rate, 1) for size, rate in swept.items()}, counts, statistics.median(full)


def test_generation(folders, table):
    numbers, swept, counts, full = one_rank(generation, folders)
    best = max(swept, key=swept.get)
    mine = numbers["ours"]
    print(f"\nuseful tokens/s: {rates(numbers)}; transformers by batch size {swept}; steps {counts}", flush=True)
    table.add(f"generation: x transformers at batch {best}", f"{ratio(mine, numbers['transformers']):.2f}", "5")
    table.add("generation: x a static batch of our own", f"{ratio(mine, numbers['static']):.2f}", "3")
    table.add("generation: share of the floor of the steps taken", f"{ratio(mine, numbers['floor']):.0%}", "60%")
    table.add("generation: share of the floor with all slots taken", f"{statistics.median(mine) / full:.0%}")
    busy = counts["decode_rows"] / counts["decode_steps"] / SLOTS
    table.add("generation: slots that hold a row, over all decode steps", f"{busy:.0%}")
    table.add("generation: speed at any shape x at one fixed shape", f"{ratio(numbers['any shape'], mine):.2f}")


def many_samples(mesh, folders):
    policy, tokenizer = load_model(folders.policy, mesh)
    fan = workload.FAN_OUT
    # All of one length: the longest row of a skewed draw would hide what the prompts take.
    prompts = workload.pieces((2 if QUICK else 8) * fan, 256, seed=3)
    separate = [Job(ids, workload.MEDIAN) for ids in prompts]
    wanted = {
        "shared": ours.requests(separate[: len(separate) // fan], samples=fan),
        "separate": ours.requests(separate),
    }

    def run(name):
        return timed(lambda: ours.generate(policy, tokenizer, mesh, wanted[name], slots=SLOTS))[0]

    run("shared")
    return in_turn({name: lambda name=name: run(name) for name in wanted}, ROUNDS)


def test_samples_of_one_prompt(folders, table):
    numbers = one_rank(many_samples, folders)
    table.add(
        f"8 samples of a 256-token prompt x 8 prompts, {workload.MEDIAN} tokens each",
        f"{ratio(numbers['separate'], numbers['shared']):.2f}", "1.5",
    )  # fmt: skip


def scoring(mesh, folders, shared: bool):
    model, tokenizer = load_model(folders.reward, mesh, reward=True)
    theirs = peers.reward(folders.reward_hf)
    rows = workload.fans(2 if QUICK else 6) if shared else workload.conversations(NUM_CONVERSATIONS)
    found = {}
    ways = {
        "ours": lambda: score(model, tokenizer, mesh, rows),
        "batch 1": lambda: peers.score(theirs, rows, 1),
        "batch 8": lambda: peers.score(theirs, rows, 8),
        "batch 8 by length": lambda: peers.score(theirs, rows, 8, key=lambda index: len(rows[index])),
    }

    def run(name):
        seconds, found[name] = timed(ways[name])
        return seconds

    run("ours")
    swept = {name: run(name) for name in list(ways)[1:]}
    compared = ["ours", min(swept, key=swept.get)] if shared else ["ours", "batch 1", "batch 8"]
    numbers = in_turn({name: lambda name=name: run(name) for name in compared}, ROUNDS)
    return numbers, found, sum(map(len, rows))


def assert_same_scores(found):
    for name, rewards in found.items():
        assert np.ptp(rewards, axis=0).min() > 0.1, "the rewards do not depend on the conversation"
        np.testing.assert_allclose(rewards, found["ours"], rtol=0, atol=1e-4, err_msg=name)


def test_scoring(folders, table):
    numbers, found, tokens = one_rank(scoring, folders, False)
    assert_same_scores(found)
    spent = {name: [tokens / seconds for seconds in all_seconds] for name, all_seconds in numbers.items()}
    print(f"\nscored tokens/s, without padding: {rates(spent)}", flush=True)
    table.add("scoring: x transformers at batch 1", f"{ratio(numbers['batch 1'], numbers['ours']):.2f}", "0.95")
    table.add("scoring: x its padded batches of 8", f"{ratio(numbers['batch 8'], numbers['ours']):.2f}", "2.5")


def test_scoring_of_responses_to_one_prompt(folders, table):
    numbers, found, _ = one_rank(scoring, folders, True)
    assert_same_scores(found)
    (best,) = set(numbers) - {"ours"}
    table.add(
        f"scoring 8 responses to a 512-token prompt: x transformers' best ({best})",
        f"{ratio(numbers[best], numbers['ours']):.2f}", "2",
    )  # fmt: skip
