"""What the plan says beside what is measured: resident memory of fits, and the time of generation, scoring and training.

Ratios are printed, never asserted; tests/plan/test_memory.py asserts bytes of storages. Time is that which the
processor gives to the one thread, so that others on the machine change little; the rates are measured first, as `nemo-sdg calibrate` does.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest
import torch
from benchmarks import workload
from benchmarks.bench import QUICK, one_rank
from benchmarks.measuring import Table
from folders import make_folder, make_tokenizer
from measured import Peak

from nemo_sdg import plan
from nemo_sdg.config import RunConfig, load
from nemo_sdg.models.shapes import NemotronShape

SERVED = ["score.backend=endpoint", "score.endpoint.url=http://127.0.0.1:1/v1", "evaluate.helpsteer2=null"]
SHAPE = dataclasses.replace(workload.shape(), num_layers=12, seq_length=1024)
"""35M parameters; `hardware.fragments` of conf/hardware.yaml comes from fits of it."""
OTHERS = {
    "wide": dataclasses.replace(SHAPE, num_layers=6, hidden_size=1024, ffn_hidden_size=4096, num_attention_heads=16),
    "deep": dataclasses.replace(SHAPE, num_layers=40, hidden_size=320, ffn_hidden_size=1280, num_attention_heads=5, num_query_groups=5),
    "many pieces": dataclasses.replace(SHAPE, num_layers=6, vocab_size=32_000),
    "some pieces": dataclasses.replace(SHAPE, num_layers=4, hidden_size=768, ffn_hidden_size=3072, vocab_size=12_000),
}
"""Shapes that no constant was fitted to; of "many pieces" it was learned how many gradients of the logits there are."""


@pytest.fixture(scope="module", autouse=True)
def nemo():
    from nemo_sdg.training import nemo  # noqa: F401  # isort: skip
    import nemo_sdg.training.trainer  # noqa: F401


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("plan")
    tokenizer = make_tokenizer(root / "tokenizer.model", workload.shape().vocab_size)
    make_folder(root / "base", SHAPE, tokenizer)
    make_folder(root / "reward", SHAPE, tokenizer, reward=True, seed=1)
    return root


def write_rows(path: Path, tokenizer: Path, words: int, task: str = "sft") -> int:
    """Rows that are equally long; their tokens."""
    from nemo_sdg.models.tokenizer import Tokenizer
    from nemo_sdg.training.samples import read, reward_sample, sft_sample

    turns = [{"from": "User", "value": "a", "label": None}, {"from": "Assistant", "value": "abc " * words, "label": None}]
    row = {"system": "", "mask": "User", "type": None, "conversations": turns}
    if task == "reward":
        row = {"text": f"<extra_id_0>System\n{'abc ' * words}<extra_id_2>", "label": [-100.0] * 4 + [1.0] * 5}
    path.write_text(f"{json.dumps(row)}\n" * 64)
    (length,) = {s.num_tokens for s in read(sft_sample if task == "sft" else reward_sample, path, Tokenizer(tokenizer), 1024).rows}
    return length


def fitted(config: RunConfig, task: str, start: Path, rows: Path, out: Path, watch: bool) -> dict[str, float]:
    """A fit on one rank: how much memory it took (watched), or how long."""

    def run(mesh):
        from nemo_sdg.training.fit import fit

        if watch:
            peak = Peak()
            peak.start()
        began = time.thread_time()
        fit(task, getattr(config, task), models=config.models, start=start, rows=rows, out=out, mesh=mesh, seed=1)
        return {"grown": peak.growth() if watch else 0, "seconds": time.thread_time() - began}

    return one_rank(run)


@pytest.mark.parametrize("dtype, micro", [("fp32", 1), ("fp32", 4), ("bf16", 4), ("fp64", 1)])
def test_resident_memory(world, tmp_path, dtype, micro):
    compared(SHAPE, world / "base", world / "tokenizer.model", tmp_path, dtype, micro, 120)


@pytest.mark.parametrize("words", [30, 240])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", OTHERS)
def test_resident_memory_of_shapes_that_nothing_was_fitted_to(world, tmp_path, name, dtype, words):
    shape, tokenizer = OTHERS[name], world / "tokenizer.model"
    make_folder(tmp_path / "base", shape, tokenizer)
    compared(shape, tmp_path / "base", tokenizer, tmp_path, dtype, 2, words)


def compared(shape: NemotronShape, base: Path, tokenizer: Path, folder: Path, dtype: str, micro: int, words: int) -> None:
    """Prints what the plan says of a fit beside what the process grew by."""
    rows = folder / "sft.jsonl"
    length = write_rows(rows, tokenizer, words)
    config = load("tiny", [
        f"models.base={base}", f"models.instruct={base}", f"models.dtype={dtype}", "hardware.gpu=cpu", *SERVED,
        "reward.enabled=false", "sft.steps=3", f"sft.global_batch_size={micro}", f"sft.micro_batch_size={micro}",
        f"sft.max_length={length}",
    ])  # fmt: skip
    (stage,) = plan.make(config, files=False).fits["train sft"]
    grown = fitted(config, "sft", base, rows, folder / "out", watch=True)["grown"]
    table = Table(f"memory of a fit of {shape.num_parameters / 1e6:.1f}M parameters, {dtype}, {micro} x {length} tokens")
    for name in ("weights", "gradients", "optimizer", "activations", "buffers"):
        table.add(f"{name}, MiB", f"{getattr(stage, name) / 2**20:,.1f}")
    table.add("said at most, MiB", f"{stage.total / 2**20:,.1f}")
    table.add("grown at most, MiB", f"{grown / 2**20:,.1f}")
    table.add("said / grown", f"{stage.total / grown:.3f}", "0.9 to 1.1")
    table.show()


@pytest.fixture(scope="module")
def calibration(tmp_path_factory) -> Path:
    """Rates of this machine, one thread."""
    folder = tmp_path_factory.mktemp("calibration")

    def run(mesh):
        import io

        from nemo_sdg.calibrate import pieces, solving
        from nemo_sdg.console import Console

        torch.set_num_threads(1)
        rates, errors = solving.rates(pieces.measure(mesh, folder, None, Console(io.StringIO())))
        (folder / "rates.json").write_text(json.dumps({"rates": rates}))
        return errors

    errors = one_rank(run)
    table = Table("the formulas with the calibration's rates against its own times, median and largest error")
    for kind, (count, middle, worst) in errors.items():
        table.add(f"{kind} ({count})", f"{100 * middle:.0f} %, {100 * worst:.0f} %")
    table.show()
    return folder / "rates.json"


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_time(world, calibration, tmp_path, size):
    """One thread, responses of one length, so that what is estimated is time alone."""
    base, reward, answer = world / "base", world / "reward", 32
    tokenizer = world / "tokenizer.model"
    if size == "tiny":
        base, reward = Path("examples/tiny/base").resolve(), Path("examples/tiny/reward").resolve()
        tokenizer = base.parent / "tokenizer.model"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{'abcdefgh'[i % 8] * 20} {i}"}) + "\n" for i in range(16 if QUICK else 64)))
    lengths = {task: write_rows(tmp_path / f"{task}.jsonl", tokenizer, 40, task) for task in ("sft", "reward")}
    steps = {"tiny": 20, "small": 5}[size]
    found = one_rank(_generated, base, reward, prompts, answer)
    words = [
        f"models.base={base}", f"models.instruct={base}", f"models.reward={reward}", f"data.prompts={prompts}", "hardware.gpu=cpu",
        "data.prompts_per_round=null", f"generate.max_tokens={answer}", f"generate.min_tokens={answer}", "generate.slots=32",
        f"hardware.calibration={calibration}", f"expect.response_tokens={answer}", f"expect.prompt_tokens={found['prompt_tokens']}",
        "reward.start_from=base", "hardware.disk_bytes_s=1e12",
    ]  # fmt: skip
    for task in ("sft", "reward"):
        words += [f"{task}.{w}" for w in (f"steps={steps}", "global_batch_size=8", "micro_batch_size=4", f"max_length={lengths[task]}")]
    table = Table(f"time on one thread, {size}; {os.getloadavg()[0]:.1f} processes at work on {os.cpu_count()} cores")
    for task, name in (("sft", "train policy"), ("reward", "train reward")):
        config = load("tiny", [*words, f"expect.row_tokens={lengths[task]}"])
        said = {part.name: part.seconds for part in plan.make(config, files=False).parts}
        start = base if task == "sft" else reward

        def run(mesh, config=config, task=task, start=start):
            from nemo_sdg.training.fit import fit

            torch.set_num_threads(1)
            began = time.thread_time()
            fit(task, getattr(config, task), models=config.models, start=start, rows=tmp_path / f"{task}.jsonl",
                out=tmp_path / f"out-{task}", mesh=mesh, seed=1)  # fmt: skip
            return time.thread_time() - began

        took = one_rank(run)
        table.add(f"{task}: said s, took s, ratio", f"{said[name]:.2f}, {took:.2f}, {said[name] / took:.2f}", "0.75 to 1.25")
    for phase in ("generate", "score"):
        ratio = said[phase] / found[phase]
        table.add(f"{phase}: said s, took s, ratio", f"{said[phase]:.2f}, {found[phase]:.2f}, {ratio:.2f}", "0.75 to 1.25")
    table.show()


def _generated(mesh, base: Path, reward: Path, prompts: Path, answer: int) -> dict[str, float]:
    """Seconds of generating four responses to each prompt and of scoring them, on one rank."""
    from nemo_sdg.engine.generate import generate
    from nemo_sdg.engine.load import load_model
    from nemo_sdg.engine.requests import Request, Sampling
    from nemo_sdg.engine.score import score
    from nemo_sdg.models.templates import instruct_prompt

    torch.set_num_threads(1)
    model, tokenizer = load_model(base, mesh)
    texts = [instruct_prompt([{"role": "user", "content": json.loads(line)["prompt"]}]) for line in prompts.read_text().splitlines()]
    ids = [tokenizer.encode(text) for text in texts]
    asked = [Request(str(i), sample, one, samples=4) for i, one in enumerate(ids) for sample in range(4)]
    began = time.thread_time()
    made = generate(model, tokenizer, mesh, asked, Sampling(max_tokens=answer, min_tokens=answer), 32)
    took = time.thread_time() - began
    scorer, _ = load_model(reward, mesh, reward=True)
    whole = [[*request.prompt_ids, *one.token_ids] for request, one in zip(asked, made)]
    began = time.thread_time()
    score(scorer, tokenizer, mesh, whole, 4096)
    return {"generate": took, "score": time.thread_time() - began, "prompt_tokens": sum(map(len, ids)) / len(ids)}
