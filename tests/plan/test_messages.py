"""The messages that the plan counts are those that the engine and the trainer send."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from nemo_sdg.config import load
from nemo_sdg.plan.timing import MICRO_BATCH_MESSAGES, SCORE_MESSAGES, STEP_MESSAGES, TOKEN_MESSAGES

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny" / "base"
LAYERS, MICRO_BATCHES = 4, 2


def sent(profile: torch.profiler.profile) -> int:
    """Collective operations, and what is sent to one other rank."""
    return sum(event.name.startswith("c10d::") and "recv" not in event.name for event in profile.events())


def counted() -> torch.profiler.profile:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])


def decoding(mesh) -> int:
    from nemo_sdg.engine.generate import Engine
    from nemo_sdg.engine.load import load_model
    from nemo_sdg.engine.requests import Request, Sampling

    model, tokenizer = load_model(TINY, mesh)
    engine = Engine(model, tokenizer, mesh, slots=8)
    for number in range(8):
        engine.submit(Request(f"{number}", 0, list(range(20, 30)), Sampling(max_tokens=8, min_tokens=8), 1))
    for _ in range(4):
        engine.step()
    prefills = engine.stats.prefill_steps
    with counted() as profile:
        engine.step()
    assert engine.stats.prefill_steps == prefills, "no decode step"
    return sent(profile)


def test_messages_of_a_decode_step_over_tensor_parallel_ranks():
    assert run_ranks(decoding, tp=2)[0] == 2 * LAYERS + TOKEN_MESSAGES
    assert run_ranks(decoding, dp=2)[0] == 0


def scoring(mesh) -> int:
    """Messages of two packs less those of one."""
    from nemo_sdg.engine.load import load_model
    from nemo_sdg.engine.score import score

    model, tokenizer = load_model(TINY.parent / "reward", mesh, reward=True)
    found = []
    for packs in (1, 2):
        with counted() as profile:
            score(model, tokenizer, mesh, [list(range(20 + i, 30 + i)) for i in range(packs)], pack_tokens=16)
        found.append(sent(profile))
    return found[1] - found[0]


def test_messages_of_a_scoring_pass_over_tensor_parallel_ranks():
    assert run_ranks(scoring, tp=2)[0] == 2 * LAYERS + SCORE_MESSAGES


def training(mesh, rows: Path, out: Path) -> list[int]:
    """Messages of each step but the first."""
    from nemo_sdg.training.fit import fit

    found: list[int] = []
    profiles: list[torch.profiler.profile] = []

    def on_step(step: int, loss: float) -> None:
        if profiles:
            profiles[-1].__exit__(None, None, None)
            found.append(sent(profiles[-1]))
        profiles.append(counted().__enter__())

    config = load("tiny", ["sft.steps=4"])
    fit("sft", config.sft, models=config.models, start=TINY, rows=rows, out=out, mesh=mesh, seed=1, on_step=on_step)
    if profiles:  # only the first rank hears of steps
        profiles[-1].__exit__(None, None, None)
    return found


OVER_TP = STEP_MESSAGES + MICRO_BATCHES * (4 * LAYERS + MICRO_BATCH_MESSAGES)


@pytest.mark.parametrize("name, expected", [("dp", STEP_MESSAGES + 1), ("tp", OVER_TP + 1)])
def test_messages_of_a_training_step(tmp_path, name, expected):
    import nemo_sdg.training.nemo  # isort: skip  # noqa: F401  (once, before the forks)
    import nemo_sdg.training.trainer  # noqa: F401

    turns = [{"from": "User", "value": "a", "label": None}, {"from": "Assistant", "value": "abc", "label": None}]
    row = {"system": "", "mask": "User", "type": None, "conversations": turns}
    (tmp_path / "sft.jsonl").write_text(f"{json.dumps(row)}\n" * 64)
    found = run_ranks(training, tmp_path / "sft.jsonl", tmp_path / "out", **{name: 2})[0]
    assert found == [expected] * 3  # over replicas one more, the gradients; over tensor-parallel ranks one that is left out
