"""What the plan says of a rank's memory, held against the storages of a real fit and against what autograd saves in it."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from measured import fit_bytes
from ranks import run_ranks
from training import worlds

from nemo_sdg import plan
from nemo_sdg.config import load
from nemo_sdg.plan.activations import under_way

SHAPE = dataclasses.replace(
    worlds.SHAPE, hidden_size=64, ffn_hidden_size=256, num_attention_heads=8, num_query_groups=2, kv_channels=16
)
SERVED = ["score.backend=endpoint", "score.endpoint.url=http://127.0.0.1:1/v1", "evaluate.helpsteer2=null"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, dict[str, int]]:
    """A folder with a start and rows of one length, and how many tokens a row of each task has."""
    from nemo_sdg.training import nemo  # noqa: F401  # isort: skip
    import nemo_sdg.training.trainer  # noqa: F401
    from nemo_sdg.models.tokenizer import Tokenizer
    from nemo_sdg.training.preference import preference_sample
    from nemo_sdg.training.samples import read, reward_sample, sft_sample

    root, draw = tmp_path_factory.mktemp("memory"), random.Random(3)
    worlds.write_tokenizer(root / "tokenizer.model")
    run_ranks(lambda mesh: worlds.write_start(mesh, root / "base", root / "tokenizer.model", shape=SHAPE))

    def text(words: int) -> str:
        return " ".join(draw.choice(worlds.WORDS) for _ in range(words))

    def dialogue() -> list[dict]:
        return [{"from": who, "value": text(40 if who == "Assistant" else 3), "label": None} for who in ("User", "Assistant")]

    pair = {"prompt": "<extra_id_0>System\n\n<extra_id_1>User\nadd\n<extra_id_1>Assistant\n"}
    rows = {
        "sft": [{"system": "", "mask": "User", "type": None, "conversations": dialogue()} for _ in range(16)],
        "reward": [{"text": f"<extra_id_0>System\n{text(40)}<extra_id_2>", "label": [-100.0] * 4 + [1.0] * 5} for _ in range(16)],
        "preference": [
            {**pair, **{f"{side}_response": f"{text(40)}\n<extra_id_1>" for side in ("chosen", "rejected")},
             "chosen_reward": 2.0, "rejected_reward": 1.0}
            for _ in range(16)
        ],
    }  # fmt: skip
    longest = {}
    for task, make in (("sft", sft_sample), ("reward", reward_sample), ("preference", preference_sample)):
        worlds.write_rows(root / f"{task}.jsonl", rows[task])
        samples = read(make, root / f"{task}.jsonl", Tokenizer(root / "tokenizer.model"), 256).rows
        (longest[task],) = {len(tokens) for sample in samples for tokens in sample.sequences}
    return root, longest


CASES = [
    # task, dtype, ranks, virtual stages, sequence parallel, further settings of the fit
    ("sft", "fp32", {}, 1, False, []),
    ("sft", "bf16", {}, 1, False, ["micro_batch_size=4"]),
    ("sft", "fp64", {}, 1, False, ["packed_sequence_size={two}", "micro_batch_size=1"]),
    ("sft", "fp32", {"tp": 2}, 1, False, []),
    ("sft", "bf16", {"tp": 2}, 1, True, []),
    ("sft", "bf16", {"pp": 2}, 1, False, []),
    ("sft", "fp32", {"pp": 4}, 1, False, ["micro_batch_size=1"]),
    ("sft", "fp32", {"pp": 2}, 2, False, []),
    ("sft", "bf16", {"dp": 2}, 1, False, []),
    ("reward", "bf16", {}, 1, False, ["micro_batch_size=1"]),
    ("reward", "fp32", {"tp": 2, "pp": 2}, 1, True, []),
    ("preference", "fp32", {"tp": 2}, 1, False, ["micro_batch_size=1"]),
]


@pytest.mark.parametrize("task, dtype, ranks, chunks, sharded, more", CASES, ids=str)
def test_bytes_are_those_of_a_fit(world, tmp_path, task, dtype, ranks, chunks, sharded, more):
    root, longest = world
    words = [f"models.{role}={root}/base" for role in ("base", "instruct")] + [f"models.dtype={dtype}", *SERVED]
    words += [f"{one}.enabled={str(one == task).lower()}" for one in ("sft", "reward", "preference")]
    more = [one.format(two=2 * longest[task]) for one in more]  # a row that is full
    given = (f"max_length={longest[task]}", "steps=2", "global_batch_size=8", "micro_batch_size=2", *more)
    words += [f"{task}.{one}" for one in given]
    words += [f"topology.{key}={count}" for key, count in ranks.items()] + [f"{task}.start_from=base", "hardware.gpu=cpu"]
    words += [f"topology.virtual_stages={chunks}", f"topology.sequence_parallel={str(sharded).lower()}"]
    config = load("tiny", words)
    settings = getattr(config, task)
    said = plan.make(config, files=False)
    (stages,) = said.fits.values()
    options = {"models": config.models, "start": root / "base", "rows": root / f"{task}.jsonl", "out": tmp_path / "out"}
    options |= {"virtual_stages": chunks, "sequence_parallel": sharded}
    found = run_ranks(lambda mesh: fit_bytes(mesh, task, settings, **options), sequence_parallel=sharded, **ranks)
    for rank, measured in enumerate(found):
        stage = stages[rank // (ranks.get("tp", 1) * ranks.get("dp", 1))]
        print(json.dumps({"rank": rank, "measured": measured, "said": dataclasses.asdict(stage)}))
        for what in ("weights", "gradients", "optimizer"):
            assert getattr(stage, what) == pytest.approx(measured[what], rel=0.02), what
        assert stage.activations == pytest.approx(measured["activations"], rel=0.02)


@pytest.mark.parametrize("pp, chunks, micro_batches", [(2, 1, 1), (4, 1, 2), (4, 1, 16), (4, 2, 8), (8, 3, 16)])
def test_passes_under_way_are_those_of_megatrons_schedule(pp, chunks, micro_batches, monkeypatch):
    from megatron.core.pipeline_parallel import schedules

    monkeypatch.setattr(schedules.parallel_state, "get_pipeline_model_parallel_world_size", lambda: pp)
    monkeypatch.setattr(
        schedules.parallel_state, "get_virtual_pipeline_model_parallel_world_size", lambda: chunks if chunks > 1 else None
    )
    for stage in range(pp):
        monkeypatch.setattr(schedules.parallel_state, "get_pipeline_model_parallel_rank", lambda stage=stage: stage)
        _, _, warmup, remaining = schedules.get_pp_rank_microbatches(micro_batches, chunks, pp, forward_only=False)
        assert under_way(pp, stage, micro_batches, chunks) == warmup + (remaining > 0)
