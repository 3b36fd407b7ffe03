"""What TensorBoard is told of a fit: the numbers that the fit itself goes by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks

from nemo_sdg.config import Models, Run, Training
from nemo_sdg.errors import UserError
from nemo_sdg.training.listeners import Listeners

SETTINGS = Training(
    steps=4, global_batch_size=8, micro_batch_size=2, max_length=256, learning_rate=2e-3, warmup_steps=1, clip_grad=0.5
)


def train(mesh: Any, world: Path, out: Path, settings: Training = SETTINGS) -> dict[str, Any]:
    from nemo_sdg.training.fit import fit

    listeners = Listeners.of(Run(tensorboard=True), out, "round-0/policy")
    return fit(
        "sft", settings, models=Models(dtype="fp64"), start=world / "base", rows=world / "sft.jsonl",
        out=out / "policy", mesh=mesh, seed=5, listeners=listeners,
    )  # fmt: skip


def curves(folder: Path) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = EventAccumulator(str(folder)).Reload()
    found = {tag: told.Scalars(tag) for tag in told.Tags()["scalars"] if tag != "epoch"}
    assert all([event.step for event in events] == list(range(len(events))) for events in found.values())
    return {tag: [event.value for event in events] for tag, events in found.items()}


def first_norm(mesh: Any, world: Path) -> float:
    """The norm of the first step's gradient, by plain torch on the whole batch."""
    from nemo_sdg.engine.load import load_model
    from nemo_sdg.training.batches import GlobalBatches
    from nemo_sdg.training.samples import read, sft_sample

    model, tokenizer = load_model(world / "base", mesh, dtype="fp64")
    batches = GlobalBatches(read(sft_sample, world / "sft.jsonl", tokenizer, 256).rows, steps=1, global_batch_size=8, seed=5)
    batch = batches.__getitems__(list(range(8)))
    logits_BSV = model(batch["tokens"], batch["position_ids"], None)
    torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), batch["labels"].flatten(), ignore_index=-1).backward()
    return torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()]).item()


@pytest.mark.parametrize("grid", [{}, {"tp": 2, "pp": 2}], ids=str)
def test_the_curves_are_those_of_the_fit(world, tmp_path, grid):
    result = run_ranks(train, world, tmp_path, **grid)[0]
    (file,) = (tmp_path / "logs").rglob("events.out.tfevents.*")
    assert file.parent == tmp_path / "logs" / "tensorboard" / "round-0" / "policy"
    told = curves(file.parent)
    assert told["loss"] == pytest.approx(result["losses"], rel=1e-6)
    assert told["learning_rate"] == pytest.approx([1e-3, 2e-3, 2e-3, 2e-3])  # linear over warmup_steps + 1
    assert told["gradient_norm"][0] == pytest.approx(run_ranks(first_norm, world)[0], rel=1e-6)
    assert len(told["tokens_per_second"]) == 4 and min(told["tokens_per_second"]) > 0


def test_the_norm_is_told_without_clipping_too_and_without_a_setting_nobody_is_told(world, tmp_path):
    run_ranks(train, world, tmp_path, replace(SETTINGS, clip_grad=0.0, steps=2))
    told = curves(tmp_path / "logs" / "tensorboard" / "round-0" / "policy")
    assert told["gradient_norm"][0] == pytest.approx(run_ranks(first_norm, world)[0], rel=1e-6)
    assert Listeners.of(Run(), tmp_path, "round-0/policy") is None
    both = Listeners.of(Run(name="mine", tensorboard=True, wandb="project"), tmp_path, "round-0/policy")
    assert (both.project, both.name) == ("project", "mine/round-0/policy")


def test_weights_and_biases_is_told_the_same(world, tmp_path, monkeypatch):
    """Without a network: it writes what it would send."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def fitted(mesh):
        from nemo_sdg.training.fit import fit

        listeners = Listeners(tmp_path, "project", "mine/round-0/policy")
        fit("sft", replace(SETTINGS, steps=2), models=Models(dtype="fp64"), start=world / "base", rows=world / "sft.jsonl",
            out=tmp_path / "policy", mesh=mesh, seed=5, listeners=listeners)  # fmt: skip

    run_ranks(fitted, timeout_s=120)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def _not_logged_in(mesh, world, out):
    from nemo_sdg.training.fit import fit

    with pytest.raises(UserError) as caught:
        fit("sft", replace(SETTINGS, steps=2), models=Models(dtype="fp64"), start=world / "base", rows=world / "sft.jsonl",
            out=out / "policy", mesh=mesh, seed=5, listeners=Listeners(None, "project", "mine"))  # fmt: skip
    return str(caught.value)


def test_who_is_not_logged_in_is_told_so_on_every_rank(world, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    for told in run_ranks(_not_logged_in, world, tmp_path, dp=2):
        assert told.startswith("run.wandb: Weights & Biases does not take the curves, found ") and "WANDB_MODE=offline" in told


def _stopped(mesh: Any, world: Path, out: Path) -> list[float]:
    """The losses that TensorBoard can show when a fit has ended because it was told to stop in its second step."""
    import os
    import signal

    from nemo_sdg.errors import Stopped
    from nemo_sdg.training.fit import fit

    def told(step: int, loss: float) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        fit("sft", SETTINGS, models=Models(dtype="fp64"), start=world / "base", rows=world / "sft.jsonl", on_step=told,
            out=out / "policy", mesh=mesh, seed=5, listeners=Listeners(out / "curves", None, "x"))  # fmt: skip
    return curves(out / "curves")["loss"]


def test_a_fit_that_is_stopped_leaves_all_that_it_has_told(world, tmp_path):
    """The writer keeps up to two minutes to itself, and its thread ends with the process."""
    before = run_ranks(_stopped, world, tmp_path)[0]
    assert len(before) == 3
