"""What a fit promises, on real ranks: the same losses everywhere, whole checkpoints, the same result after a kill."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import TOPOLOGIES, run_ranks

from nemo_sdg.config import Models, Training
from nemo_sdg.errors import CheckpointError, StoreError, UserError

SETTINGS = Training(
    steps=5, global_batch_size=8, micro_batch_size=2, max_length=256, learning_rate=2e-3, warmup_steps=2, clip_grad=0.0
)
FP64 = Models(dtype="fp64")


def train(
    mesh: Any, world: Path, out: Path, task: str = "sft", settings: Training = SETTINGS, **more: Any
) -> dict[str, Any]:
    from nemo_sdg.training.fit import fit

    options = {"models": FP64, "start": world / "base", "rows": world / f"{task}.jsonl", "seed": 5, **more}
    return fit(task, settings, out=out, mesh=mesh, **options)


def losses(mesh: Any, *args: Any, **more: Any) -> list[float]:
    return train(mesh, *args, **more)["losses"]


def weights(mesh: Any, folder: Path, dtype: str = "fp64") -> dict[str, torch.Tensor]:
    """All weights of a trained folder, through a model on one rank."""
    from nemo_sdg.checkpoints.folder import ModelFolder
    from nemo_sdg.engine.load import load_model

    model, _ = load_model(folder, mesh, dtype=dtype, reward=ModelFolder.open(folder).is_reward)
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


@pytest.fixture(scope="session")
def alone(world: Path) -> dict[str, list[float]]:
    """Losses of both tasks on one rank."""
    return {task: run_ranks(losses, world, world / f"alone-{task}", task)[0] for task in ("sft", "reward")}


@pytest.mark.parametrize("task", ["sft", "reward"])
@pytest.mark.parametrize("name", [name for name in TOPOLOGIES if name != "one"])
def test_the_first_steps_are_the_same_at_every_topology(world, alone, tmp_path, task, name):
    tp, pp, dp = TOPOLOGIES[name]
    for found in run_ranks(losses, world, tmp_path / "out", task, tp=tp, pp=pp, dp=dp):
        assert found == pytest.approx(alone[task], abs=1e-9)
    assert len(alone[task]) == 5 and alone[task][-1] < alone[task][0]


def _under_sequence_parallelism(mesh: Any, *args: Any) -> list[float]:
    from nemo_sdg.training import fit

    fill = fit._Fit._fill
    configs = []
    fit._Fit._fill = lambda job, model: (configs.append(model.config), fill(job, model))
    found = losses(mesh, *args, sequence_parallel=True)
    assert configs[0].sequence_parallel
    return found


@pytest.mark.parametrize("task", ["sft", "reward"])
def test_sequence_parallelism_changes_nothing(world, alone, tmp_path, task):
    for found in run_ranks(_under_sequence_parallelism, world, tmp_path / "out", task, tp=2):
        assert found == pytest.approx(alone[task], abs=1e-9)


@pytest.mark.parametrize("dtype, tolerance", [("fp32", 2e-5), ("fp64", 1e-9)])
def test_clipping_is_by_the_norm_over_all_ranks(world, alone, tmp_path, dtype, tolerance):
    def run(mesh, out):
        settings = replace(SETTINGS, clip_grad=0.2)
        return losses(mesh, world, out, "sft", settings, models=Models(dtype=dtype))

    one = run_ranks(run, tmp_path / "one")[0]
    assert max(abs(a - b) for a, b in zip(one, alone["sft"])) > 1e-6  # it clips
    assert run_ranks(run, tmp_path / "four", tp=2, pp=2)[3] == pytest.approx(one, abs=tolerance)
    assert run_ranks(run, tmp_path / "two", dp=2)[1] == pytest.approx(one, abs=tolerance)


@pytest.mark.parametrize("task", ["sft", "reward"])
def test_accumulation_changes_nothing(world, alone, tmp_path, task):
    """Four micro batches of two, which hold different numbers of targets, against one of eight; clipped in fp32 alone."""
    whole = replace(SETTINGS, micro_batch_size=8)
    assert run_ranks(losses, world, tmp_path / "whole", task, whole)[0] == pytest.approx(alone[task], abs=1e-9)
    clipped, models = replace(SETTINGS, clip_grad=0.2), Models(dtype="fp32")

    def run(mesh, settings):
        return losses(mesh, world, tmp_path / str(settings.micro_batch_size), task, settings, models=models)

    four, one = run_ranks(run, clipped)[0], run_ranks(run, replace(clipped, micro_batch_size=8))[0]
    assert four == pytest.approx(one, abs=2e-5) and max(abs(a - b) for a, b in zip(four, alone[task])) > 1e-4


def _by_hand(mesh: Any, world: Path, settings: Training) -> list[float]:
    """SFT as plain torch would do it: the whole global batch at once, cross entropy, AdamW."""
    from nemo_sdg.engine.load import load_model
    from nemo_sdg.training.batches import GlobalBatches
    from nemo_sdg.training.samples import read, sft_sample

    model, tokenizer = load_model(world / "base", mesh, dtype="fp64")
    rows = read(sft_sample, world / "sft.jsonl", tokenizer, settings.max_length).rows
    size = settings.global_batch_size
    batches = GlobalBatches(rows, steps=settings.steps, global_batch_size=size, seed=5)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), eps=1e-8)
    found = []
    for step in range(settings.steps):
        batch = batches.__getitems__(list(range(step * size, (step + 1) * size)))
        for group in adam.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (step + 1) / (settings.warmup_steps + 1))
        logits_BSV = model(batch["tokens"], batch["position_ids"], None)
        loss = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), batch["labels"].flatten(), ignore_index=-1)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        adam.step()
        found.append(loss.item())
    return found


def test_a_fit_does_what_plain_torch_does(world, tmp_path):
    settings = replace(SETTINGS, clip_grad=0.5)
    expected = run_ranks(_by_hand, world, settings)[0]
    found = run_ranks(losses, world, tmp_path / "out", "sft", settings)[0]
    assert found == pytest.approx(expected, abs=1e-7)  # Megatron's eps in the clip is 1e-6, as torch's


def _two_fits(mesh: Any, world: Path, out: Path) -> tuple[list[float], list[float]]:
    from nemo.utils import AppState

    first = losses(mesh, world, out / "first")
    larger = replace(SETTINGS, steps=3, global_batch_size=12, micro_batch_size=3)
    second = losses(mesh, world, out / "second", "reward", larger, start=out / "first")
    state = AppState()
    assert (state.data_parallel_rank, state.data_parallel_size) == (mesh.dp_rank, mesh.dp)
    return first, second


def test_two_fits_with_other_batch_sizes_in_one_process_group(world, alone, tmp_path):
    """The second starts from what the first has trained, and puts a fresh head on it."""
    one = run_ranks(_two_fits, world, tmp_path / "one")[0]
    four = run_ranks(_two_fits, world, tmp_path / "four", tp=2, pp=2)[0]
    assert one[0] == alone["sft"] and len(one[1]) == 3
    assert four[0] == pytest.approx(one[0], abs=1e-9) and four[1] == pytest.approx(one[1], abs=1e-9)


def _trained_and_loaded(mesh: Any, world: Path, out: Path) -> bool:
    from nemo_sdg.engine.load import load_model
    from nemo_sdg.training import fit

    live = []
    fill = fit._Fit._fill
    fit._Fit._fill = lambda job, model: (live.append(model), fill(job, model))  # the model that is then trained
    train(mesh, world, out)
    model, tokenizer = load_model(out, mesh, dtype="fp64")
    assert tokenizer.turn_id == 5
    if mesh.pp == 1:
        tokens_BS = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(1))
        positions_BS = torch.arange(24).expand(2, 24)
        with torch.no_grad():
            assert torch.equal(model(tokens_BS, positions_BS, None), live[0](tokens_BS, positions_BS, None))
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), live[0].parameters(), strict=True))


@pytest.mark.parametrize("name", ["one", "tp2", "tp2pp2"])
def test_what_was_saved_is_what_was_trained_and_loads_at_another_topology(world, alone, tmp_path, name):
    tp, pp, dp = TOPOLOGIES[name]
    assert all(run_ranks(_trained_and_loaded, world, tmp_path / "out", tp=tp, pp=pp, dp=dp))
    here, straight = run_ranks(weights, tmp_path / "out")[0], run_ranks(weights, world / "alone-sft")[0]
    assert here.keys() == straight.keys()
    for key in here:
        assert abs(here[key] - straight[key]).max() < 1e-9, key


def test_a_trained_folder_is_a_model_folder(world, alone):
    out = world / "alone-reward"
    names = {entry.name for entry in out.iterdir()}
    assert names == {"weights", "context", "model_config.yaml", "tokenizer.model", "training.json", "SHA256SUMS"}
    result = json.loads((out / "training.json").read_text())
    assert result["losses"] == alone["reward"] and result["rows"] == 37 and result["rows_set_aside"] == {}
    assert not [entry for entry in world.iterdir() if entry.name.endswith(".fit")]
    assert str(world) not in (out / "context" / "io.json").read_text()  # it can be moved and shared


def test_nemo_can_open_the_context(world, alone):
    from nemo.lightning import io

    module = io.load_context(world / "alone-sft" / "context", subpath="model")
    assert (module.config.hidden_size, module.config.kv_channels, module.config.reward) == (32, 8, False)


def _killed_then_resumed(mesh: Any, world: Path, out: Path, kill_at: int) -> list[float]:
    from nemo_sdg.training.strategy import FitStrategy

    class Killed(Exception):
        pass

    settings = replace(SETTINGS, steps=7, restart_every=2)
    step = FitStrategy.training_step

    def killing(self, *args, **kwargs):
        if self.trainer.global_step == kill_at:
            raise Killed
        return step(self, *args, **kwargs)

    FitStrategy.training_step = killing
    with pytest.raises(Killed):
        train(mesh, world, out, settings=settings)
    assert not out.exists()
    FitStrategy.training_step = step
    seen = []
    found = losses(mesh, world, out, settings=settings, on_step=lambda number, loss: seen.append(number))
    assert seen == (list(range(kill_at - kill_at % 2, 7)) if mesh.writer else [])
    return found


@pytest.mark.parametrize("name, kill_at", [("one", 5), ("one", 1), ("tp2pp2", 5)])
def test_a_killed_fit_ends_as_a_straight_one(world, tmp_path, name, kill_at):
    tp, pp, dp = TOPOLOGIES[name]
    seven = replace(SETTINGS, steps=7)
    straight = run_ranks(losses, world, tmp_path / "straight", "sft", seven, tp=tp, pp=pp, dp=dp)[0]
    resumed = run_ranks(_killed_then_resumed, world, tmp_path / "resumed", kill_at, tp=tp, pp=pp, dp=dp)[0]
    assert resumed == straight
    one, two = (run_ranks(weights, tmp_path / name)[0] for name in ("straight", "resumed"))
    assert all((one[key] == two[key]).all() for key in one)


def _killed(mesh: Any, world: Path, out: Path) -> None:
    def stop(step: int, loss: float) -> None:
        if step == 5:
            os._exit(0)  # as a kill would: nothing is tidied up

    stop_everywhere = stop if mesh.writer else None
    train(mesh, world, out, settings=replace(SETTINGS, steps=7, restart_every=2), on_step=stop_everywhere)


def test_a_fit_goes_on_at_another_topology(world, tmp_path):
    with pytest.raises(AssertionError, match="rank 0 ended without a result"):
        run_ranks(_killed, world, tmp_path / "out", tp=2, pp=2, timeout_s=5)
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.fit" / "step-00000004").is_dir()
    seven = replace(SETTINGS, steps=7)
    resumed = run_ranks(losses, world, tmp_path / "out", "sft", seven)[0]
    assert resumed == pytest.approx(run_ranks(losses, world, tmp_path / "straight", "sft", seven)[0], abs=1e-9)


def _dies_in_its_commit(mesh: Any, world: Path, out: Path, moment: str) -> None:
    from nemo_sdg.store import commit_folder
    from nemo_sdg.training import fit

    def dies(temporary: Path, final: Path) -> None:
        if moment == "after the rename":
            commit_folder(temporary, final)
        os._exit(0)

    fit.commit_folder = dies
    train(mesh, world, out)


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_a_fit_that_is_killed_in_its_commit_is_finished_by_the_next_start(world, alone, tmp_path, moment):
    with pytest.raises(AssertionError, match="ended without a result"):
        run_ranks(_dies_in_its_commit, world, tmp_path / "out", moment)
    assert (tmp_path / "out").exists() == (moment == "after the rename")
    assert run_ranks(losses, world, tmp_path / "out", "sft", SETTINGS)[0] == alone["sft"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the working folder is still there"


def _in_bf16(mesh: Any, world: Path, out: Path) -> list[float]:
    from nemo_sdg.engine.load import load_model

    found = losses(mesh, world, out, models=Models(dtype="bf16"), settings=replace(SETTINGS, clip_grad=1.0))
    model, _ = load_model(out, mesh, dtype="bf16")
    assert model.embedding is None or model.embedding.word_embeddings.weight.dtype == torch.bfloat16
    return found


def test_bf16_trains_with_fp32_main_weights(world, alone, tmp_path):
    found = run_ranks(_in_bf16, world, tmp_path / "out")[0]
    assert found == pytest.approx(alone["sft"], abs=0.05) and found != alone["sft"]


def test_a_finished_fit_is_not_done_again_and_another_one_is_refused(world, alone):
    def again(mesh, settings, models=FP64):
        trained_again = lambda *_: pytest.fail("trained again")  # noqa: E731
        return train(mesh, world, world / "alone-sft", settings=settings, models=models, on_step=trained_again)

    assert run_ranks(again, SETTINGS)[0]["losses"] == alone["sft"]

    def other(mesh):
        for settings, models in ((replace(SETTINGS, steps=6), FP64), (SETTINGS, replace(FP64, spec="local"))):
            with pytest.raises(StoreError, match="another fit"):
                again(mesh, settings, models)

    run_ranks(other)


def test_untrained_outputs_of_the_head_stay_as_they_are(world, tmp_path):
    """Outputs 0 to 3 have no labels: without weight decay their rows of the head must not move."""
    settings = replace(SETTINGS, weight_decay=0.0)
    run_ranks(losses, world, tmp_path / "short", "reward", replace(settings, steps=1))
    run_ranks(losses, world, tmp_path / "long", "reward", settings)
    short, long = (run_ranks(weights, tmp_path / name)[0]["rm_head.weight"] for name in ("short", "long"))
    assert (short[:4] == long[:4]).all() and (short[4:] != long[4:]).all()


def _refusals(mesh: Any, world: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "empty.jsonl").write_text("\n")
    cases = [
        {"settings": replace(SETTINGS, global_batch_size=7)},
        {"rows": tmp_path / "empty.jsonl"},
        {"rows": tmp_path / "none.jsonl"},
        {"settings": replace(SETTINGS, max_length=3)},
        {"start": tmp_path},
    ]
    messages = []
    for case in cases:
        with pytest.raises(UserError) as caught:
            train(mesh, world, tmp_path / "out", **case)
        messages.append(str(caught.value))
    with pytest.raises(CheckpointError, match="wrong kind"):
        train(mesh, world, tmp_path / "out", start=world / "alone-reward")
    assert sorted(os.listdir(tmp_path)) == ["empty.jsonl"]
    return messages


def test_what_cannot_be_trained_is_refused_in_one_sentence(world, alone, tmp_path):
    batch, empty, absent, long, start = run_ranks(_refusals, world, tmp_path)[0]
    assert batch.endswith("expected a multiple of 2; set sft.global_batch_size=8")
    assert "no row can be used, found an empty file" in empty
    assert "cannot read the rows" in absent
    assert "37 x longer than max_length" in long
    assert "not a checkpoint" in start
