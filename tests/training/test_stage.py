"""The training stage of a round: which models are trained, from where, and that it is done once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ranks import run_ranks

from nemo_sdg.config import Models, Preference, RewardTraining, Run, RunConfig, Training
from nemo_sdg.console import Console
from nemo_sdg.store import Run as OpenRun
from training import worlds

SETTINGS = dict(steps=3, global_batch_size=4, micro_batch_size=2, max_length=256, warmup_steps=1, learning_rate=2e-3)


def _tuned(mesh: Any, world: Path, out: Path) -> tuple[dict, dict[str, dict], list[str]]:
    from nemo_sdg.checkpoints.folder import ModelFolder
    from nemo_sdg.stages import fitting, train
    from nemo_sdg.stages.context import Context
    from nemo_sdg.training import fit, reference

    starts = {}
    whole, compared = fit.fit, reference.with_reference

    def remembering(task, *args, **options):
        starts[options["out"].name] = {"task": task, "start": ModelFolder.open(options["start"]).path.name}
        return whole(task, *args, **options)

    def comparing(samples, settings, **options):
        last = list(starts)[-1]
        starts[last]["reference"] = options["start"].path.name
        return compared(samples, settings, **options)

    fitting.fit, reference.with_reference = remembering, comparing
    config = RunConfig(
        models=Models(base=str(world / "base"), instruct=str(world / "base"), reward=str(world / "base"), dtype="fp64"),
        sft=Training(**SETTINGS), reward=RewardTraining(**SETTINGS),
        preference=Preference(**SETTINGS, enabled=True, iterations=2),
        run=Run(seed=3),
    )  # fmt: skip
    opened = OpenRun.open(out, config, writer=mesh.writer)
    context = Context(config, opened, 0, mesh, Console(io.StringIO(), speaks=False))
    datasets = context.folder / "datasets"
    datasets.mkdir(parents=True)
    for task in ("sft", "preference", "reward"):
        make = {"sft": worlds.sft_rows, "preference": worlds.pair_rows, "reward": worlds.reward_rows}[task]
        worlds.write_rows(datasets / f"{task}.jsonl", make(9))
    totals = train.run(context)
    assert context.trained("policy", 0) == context.folder / "policy"
    return totals, starts, sorted(path.name for path in context.folder.iterdir())


def test_the_policy_is_tuned_step_by_step(world, tmp_path):
    """Each step goes on from the one before, which is also its reference."""
    totals, starts, left = run_ranks(_tuned, world, tmp_path / "run")[0]
    assert starts == {
        "sft": {"task": "sft", "start": "base"},
        "preference-1": {"task": "preference", "start": "sft", "reference": "sft"},
        "policy": {"task": "preference", "start": "preference-1", "reference": "preference-1"},
        "reward": {"task": "reward", "start": "base"},
    }
    assert left == ["datasets", "policy", "preference-1", "reward", "sft"]
    assert {name: told["steps"] for name, told in totals.items()} == dict.fromkeys(starts, 3)
    weights = [(tmp_path / f"run/round-0/{name}/SHA256SUMS").read_bytes() for name in ("sft", "preference-1", "policy")]
    assert len(set(weights)) == 3


def _two_rounds(mesh: Any, world: Path, out: Path) -> tuple[list[dict], str]:
    from nemo_sdg.stages import train
    from nemo_sdg.stages.context import Context

    config = RunConfig(
        models=Models(base=str(world / "base"), instruct=str(world / "base"), reward=str(world / "base"), dtype="fp64"),
        sft=Training(**SETTINGS, start_from="latest"),
        reward=RewardTraining(**SETTINGS, enabled=False),
        run=Run(rounds=2, seed=3),
    )
    text = io.StringIO()
    opened = OpenRun.open(out, config, writer=mesh.writer)
    totals = []
    for number in (0, 1, 1):
        context = Context(config, opened, number, mesh, Console(text, speaks=mesh.writer))
        datasets = context.folder / "datasets"
        if mesh.writer:
            datasets.mkdir(parents=True, exist_ok=True)
            worlds.write_rows(datasets / "sft.jsonl", worlds.sft_rows(9))
        mesh.barrier()
        totals.append(train.run(context))
        assert context.trained("policy", number) == context.folder / "policy"
        assert not (context.folder / "reward").exists()
    return totals, text.getvalue()


def test_a_round_goes_on_from_the_model_of_the_one_before(world, tmp_path):
    (first, second, again), text = run_ranks(_two_rounds, world, tmp_path / "run", tp=2)[0]
    assert first["reward"] is None and first["policy"]["rows"] == 9 and first["policy"]["steps"] == 3
    assert second["policy"]["first_loss"] < first["policy"]["first_loss"]
    assert again == second
    # On a slow machine a line of progress says the same before.
    finished = [line for line in text.splitlines() if line.startswith("train policy  3 of 3")]
    assert len(finished) == 3 - 1 and all("loss " in line for line in finished)
    events = (tmp_path / "run" / "logs" / "events.jsonl").read_text()
    assert events.count('"event": "trained"') == 2
