"""A whole run in seconds: random models, a few prompts, a few steps, for tests of the loop and of launches."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from folders import make_folder, make_tokenizer, small_shape

import nemo_sdg.loop
from nemo_sdg.config import (
    Data,
    Evaluate,
    Generate,
    Models,
    RewardTraining,
    Run,
    RunConfig,
    Select,
    Topology,
    Training,
    to_yaml,
)
from nemo_sdg.console import Console
from nemo_sdg.store import Run as RunFolder


def make_inputs(root: Path) -> Path:
    """Three model folders and five files of rows under `root`."""
    tokenizer = make_tokenizer(root / "t.model")
    for name, reward, seed in (("base", False, 0), ("instruct", False, 1), ("reward", True, 2)):
        make_folder(root / name, small_shape(), tokenizer, reward=reward, seed=seed)

    def write(name: str, rows: list[dict]) -> None:
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("prompts.jsonl", [{"id": f"p{i}", "prompt": f"{'abcd'[i % 4]}{i}"} for i in range(24)])
    write("held.jsonl", [{"id": f"h{i}", "prompt": f"z{i}", "answer": "1"} for i in range(6)])
    pairs = [("hep-go", "ok", "okok"), ("donotanswer", "okokok", "ok"), ("mt-bench-easy", "ok", "okok")]
    write("pairs.jsonl", [{"prompt": "q", "chosen": a, "rejected": b, "subset": subset} for subset, a, b in pairs])
    for name, first in (("ratings.jsonl", 100), ("held_ratings.jsonl", 200)):
        values = {"correctness": 2, "coherence": 3, "complexity": 1, "verbosity": 1}
        write(
            name,
            [
                {"prompt": f"a{first + i}", "response": "ok" * (i % 3 + 1), "helpfulness": i % 5, **values}
                for i in range(12)
            ],
        )
    return root


def small_config(root: Path, **run: object) -> RunConfig:
    """Two rounds over `make_inputs`."""
    training = {"global_batch_size": 8, "micro_batch_size": 4, "max_length": 256, "steps": 3, "restart_every": 1}
    return RunConfig(
        models=Models(base=f"{root}/base", instruct=f"{root}/instruct", reward=f"{root}/reward"),
        generate=Generate(samples=3, max_tokens=10, slots=8, group_size=4),
        select=Select(minimum={"helpfulness": 0.0}),
        data=Data(prompts=f"{root}/prompts.jsonl", prompts_per_round=12, helpsteer2=f"{root}/ratings.jsonl"),
        sft=Training(**training, learning_rate=1e-3),
        reward=RewardTraining(**training, learning_rate=1e-3, start_from="latest"),
        evaluate=Evaluate(
            exact_match=f"{root}/held.jsonl", helpsteer2=f"{root}/held_ratings.jsonl", win_rate=f"{root}/held.jsonl",
            rewardbench=f"{root}/pairs.jsonl", max_tokens=8,
        ),
        run=Run(**{"name": "small", "rounds": 2, "timeout_s": 60, "threads": 1, **run}),
    )


def whole(mesh, config: RunConfig, out: Path) -> None:
    """A rank's part of a run, from its first stage to its last or to where it was killed."""
    config = dataclasses.replace(config, topology=Topology(tp=mesh.tp, pp=mesh.pp, dp=mesh.dp))
    with RunFolder.open(out, config, writer=mesh.writer) as opened:
        nemo_sdg.loop.run(config, opened, mesh, Console(speaks=False))
        mesh.barrier()


def write_recipe(path: Path, config: RunConfig) -> Path:
    path.write_text(to_yaml(config))
    return path


def row_files(run: Path) -> dict[str, bytes]:
    """Every row and every dataset of a run by relative name: what must not depend on how the run went."""
    files = [*run.glob("round-*/*/*.jsonl"), *run.glob("round-*/*/SUCCESS.json"), *run.glob("round-*/evaluation.json")]
    files += [file for file in run.glob("round-*/datasets/**/*") if file.is_file()]
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(set(files))}
