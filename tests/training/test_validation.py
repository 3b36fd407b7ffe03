"""Validation while a model trains: its numbers, that it disturbs nothing, and that the best weights are the result."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from ranks import run_ranks

from nemo_sdg.config import MISSING, OUTPUTS, Lora, Models, Preference, RewardTraining
from nemo_sdg.errors import UserError
from nemo_sdg.training import measures
from nemo_sdg.training.samples import Sample, Samples
from training import worlds
from training.test_topologies import weights

ROWS = 8
SETTINGS = RewardTraining(
    steps=4, global_batch_size=ROWS, micro_batch_size=2, max_length=256, learning_rate=2e-3, warmup_steps=1,
    clip_grad=0.0, validate_every=1, keep_best=False,
)  # fmt: skip
PACKED = {"micro_batch_size": 1, "packed_sequence_size": 512}
OBJECTIVES = {"sft": "sft", "rpo": "pairs", "regression": "reward", "bradley_terry_scaled": "pairs"}
TUNING = Preference(
    objective="rpo", beta=0.1, **{
        key: getattr(SETTINGS, key)
        for key in ("steps", "global_batch_size", "micro_batch_size", "max_length", "learning_rate", "warmup_steps",
                    "clip_grad", "validate_every", "keep_best")
    },
)  # fmt: skip


def few(world, tmp_path, name):
    """The rows of one global batch."""
    return worlds.write_rows(tmp_path / f"{name}.jsonl", [json.loads(line) for line in open(world / f"{name}.jsonl")][:ROWS])


def train(mesh, world, out, rows, settings, task="reward", **more):
    from nemo_sdg.training.fit import fit

    options = {"models": Models(dtype="fp64"), "start": world / "base", "seed": 5, "validation": rows, **more}
    return fit(task, settings, rows=rows, out=out, mesh=mesh, **options)


WAYS = {
    "one rank": ({}, {}),
    "packed": ({}, PACKED),
    "TP2 PP2": (dict(tp=2, pp=2), {}),
    "TP2, sequence parallel": (dict(tp=2, sequence_parallel=True), PACKED),
    "DP2": (dict(dp=2), {}),
    "PP2, two virtual stages": (dict(pp=2, virtual_stages=2), {}),
}


@pytest.mark.parametrize(
    "objective, way",
    [
        ("sft", "packed"), ("sft", "TP2 PP2"), ("rpo", "PP2, two virtual stages"), ("regression", "one rank"), ("regression", "DP2"),
        ("bradley_terry_scaled", "TP2 PP2"), ("bradley_terry_scaled", "TP2, sequence parallel"),
    ],
)  # fmt: skip
def test_the_loss_of_the_rows_that_train_is_that_of_the_next_step(world, tmp_path, objective, way):
    """A step on all rows tells their loss before it: so must the validation after the step before."""
    grid, changes = WAYS[way]
    rows = few(world, tmp_path, OBJECTIVES[objective])
    task = {"sft": "sft", "rpo": "preference"}.get(objective, "reward")
    settings = TUNING if task == "preference" else replace(SETTINGS, objective="regression" if task == "sft" else objective, **changes)
    ranks = {key: grid[key] for key in grid if key != "virtual_stages"}
    more = {key: grid[key] for key in ("sequence_parallel", "virtual_stages") if key in grid}
    for found in run_ranks(lambda mesh: train(mesh, world, tmp_path / "out", rows, settings, task, **more), **ranks):
        curve = found["validation"]
        assert [told["step"] for told in curve] == [1, 2, 3, 4] and found["validation_rows"] == ROWS
        assert [told["loss"] for told in curve[:-1]] == pytest.approx(found["losses"][1:], abs=1e-9)


@pytest.mark.parametrize("grid", [{}, dict(tp=2, pp=2)], ids=str)
def test_validation_disturbs_nothing(world, tmp_path, grid):
    """Not one bit of the losses, the weights or the random streams."""

    def both(mesh):
        found = []
        for name, every in (("with", 1), ("without", None)):
            settings = replace(SETTINGS, global_batch_size=4, validate_every=every)
            rows = world / "reward.jsonl"
            result = train(mesh, world, tmp_path / name, rows, settings)
            found.append((result["losses"], torch.get_rng_state().tolist()))
        return found

    for (losses, stream), without in run_ranks(both, **grid):
        assert (losses, stream) == without
    one, other = (run_ranks(weights, tmp_path / name)[0] for name in ("with", "without"))
    assert all((one[key] == other[key]).all() for key in other)
    assert "validation" not in json.loads((tmp_path / "without" / "training.json").read_text())


def opposite(world, tmp_path):
    """Rows whose labels are the reverse of those that train: what learns gets worse at them."""
    rows = [json.loads(line) for line in open(world / "reward.jsonl")]
    labels = [[MISSING if x == MISSING else -5 * x for x in row["label"]] for row in rows]
    return worlds.write_rows(tmp_path / "opposite.jsonl", [{**row, "label": label} for row, label in zip(rows, labels)])


BEST = replace(SETTINGS, keep_best=True, restart_every=2)


def fit_of_the_best(mesh, world, out, held_out, settings=BEST, **more):
    return train(mesh, world, out, world / "reward.jsonl", settings, validation=held_out, **more)


@pytest.fixture(scope="module")
def early(world, tmp_path_factory):
    """A fit that is best after its first step, and the weights that it had then."""
    root = tmp_path_factory.mktemp("best")
    held_out = opposite(world, root)
    result = run_ranks(fit_of_the_best, world, root / "out", held_out)[0]
    plain = replace(SETTINGS, steps=1, validate_every=None)
    run_ranks(train, world, root / "one-step", world / "reward.jsonl", plain)
    return held_out, result, run_ranks(weights, root / "out")[0], run_ranks(weights, root / "one-step")[0], root / "out"


def test_the_result_is_the_best_step(early):
    _, result, kept, after_one, out = early
    losses = [told["loss"] for told in result["validation"]]
    assert result["best_step"] == 1 and losses == sorted(losses)
    assert all((kept[key] == after_one[key]).all() for key in after_one)
    assert len(result["losses"]) == 4 and json.loads((out / "training.json").read_text())["best_step"] == 1
    left = {entry.name for entry in out.iterdir()}
    assert not left & {"validation.json", "losses.json", "random"} and not out.with_name(".out.fit").exists()


def killed(mesh, world, out, held_out, last, settings=BEST):
    def stop(step, loss):
        if step == last:
            os._exit(0)  # as a kill would: nothing is tidied up

    return fit_of_the_best(mesh, world, out, held_out, settings, on_step=stop)


@pytest.mark.parametrize("last", [1, 3])
def test_the_best_step_outlives_a_kill(world, early, tmp_path, last):
    """Before the first restart point the fit begins again, after it the weights of step 1 must still be there."""
    held_out, result, kept, _, _ = early
    with pytest.raises(AssertionError, match="ended without a result"):
        run_ranks(killed, world, tmp_path / "out", held_out, last)
    assert (tmp_path / ".out.fit" / "best-00000001").is_dir()
    again = run_ranks(fit_of_the_best, world, tmp_path / "out", held_out, tp=1, pp=1)[0]
    assert again["validation"] == result["validation"] and again["best_step"] == 1
    found = run_ranks(weights, tmp_path / "out")[0]
    assert all((found[key] == kept[key]).all() for key in kept)


def test_the_best_step_of_adapters_is_merged(world, early, tmp_path):
    """The weights of the result are those of a fit of one step, which merges its adapters too."""
    held_out, *_ = early
    lora = Lora(rank=3, alpha=6.0)
    result = run_ranks(fit_of_the_best, world, tmp_path / "out", held_out, replace(BEST, lora=lora), tp=2)[0]
    assert result["best_step"] == 1
    plain = replace(SETTINGS, steps=1, validate_every=None, lora=lora)
    run_ranks(train, world, tmp_path / "one-step", world / "reward.jsonl", plain, tp=2)
    found, after_one, start = (run_ranks(weights, folder)[0] for folder in (tmp_path / "out", tmp_path / "one-step", world / "base"))
    assert all((found[key] == after_one[key]).all() for key in after_one)
    changed = [key for key in start if key in found and (found[key] != start[key]).any()]
    assert len(changed) > 4, changed


def test_better_weights_after_a_restart_point_do_not_take_the_place_of_its_own(tmp_path):
    """Killed after step 3, the fit goes on from step 2, where step 1 was the best; step 3 may not be found again."""
    from nemo_sdg.training.checkpoint import CURVE, best_folder, keep_best, step_folder, whole_steps

    for step in (1, 2, 3):
        best_folder(tmp_path, step).mkdir()
    step_folder(tmp_path, 2).mkdir()
    curve = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.6}]
    (step_folder(tmp_path, 2) / CURVE).write_text(json.dumps(curve))
    keep_best(tmp_path, [*curve, {"step": 3, "loss": 0.4}])
    assert whole_steps(tmp_path, "best") == [1, 3] and whole_steps(tmp_path) == [2]
    keep_best(tmp_path, curve)
    assert whole_steps(tmp_path, "best") == [1]


def test_each_restart_point_keeps_the_best_weights_that_it_knows(tmp_path):
    """Whoever deletes the last one, because it cannot be read, goes on from the one before."""
    from nemo_sdg.training.checkpoint import CURVE, best_folder, keep_best, step_folder, whole_steps

    curve = [{"step": step, "loss": 1 / step} for step in (1, 2, 3, 4)]
    for step in (1, 2, 3, 4):
        best_folder(tmp_path, step).mkdir()
    for step in (2, 3):
        step_folder(tmp_path, step).mkdir()
        (step_folder(tmp_path, step) / CURVE).write_text(json.dumps(curve[:step]))
    keep_best(tmp_path, curve)
    assert whole_steps(tmp_path, "best") == [2, 3, 4]


def _resumed(mesh, world, work):
    from nemo_sdg.models.tokenizer import Tokenizer
    from nemo_sdg.training.held_out import HeldOut
    from nemo_sdg.training.tasks import task_of

    rows, tokenizer = world / "reward.jsonl", Tokenizer(world / "tokenizer.model")
    held_out = HeldOut(task_of("reward", SETTINGS), SETTINGS, rows, tokenizer, 256, mesh)
    held_out.resume(work if mesh.writer else work / "not there yet", 2)
    return held_out.curve


def test_a_rank_that_sees_an_older_disk_goes_on_from_the_same_curve(world, tmp_path):
    from nemo_sdg.training.checkpoint import CURVE, step_folder

    curve = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.6}]
    step_folder(tmp_path, 2).mkdir()
    (step_folder(tmp_path, 2) / CURVE).write_text(json.dumps(curve))
    assert run_ranks(_resumed, world, tmp_path, dp=2) == [curve, curve]


def test_nothing_to_validate_on(world, tmp_path):
    def refused(mesh):
        with pytest.raises(UserError) as caught:
            train(mesh, world, tmp_path / "out", world / "reward.jsonl", SETTINGS, validation=None)
        return str(caught.value)

    assert "nothing to validate on" in run_ranks(refused)[0]


def sample(prompt, label, slot=4):
    targets = torch.full((9,), MISSING, dtype=torch.float64)
    targets[slot] = label
    return Sample((torch.zeros(3, dtype=torch.int64),), targets=targets, prompt=prompt)


def test_what_is_told_of_labels():
    rows = [sample("a", 4), sample("a", 0), sample("b", 1), sample("b", 1), sample("a", 2, slot=5), sample("c", 3)]
    rewards = torch.full((6, 9), 7.0, dtype=torch.float64)
    rewards[:, 4] = torch.tensor([3.0, 1.0, 2.0, 0.0, 9.0, 3.0])
    rewards[4, 5] = 2.5
    told = measures.labels(OUTPUTS, "helpfulness").tell(rows, rewards)
    assert told["loss"] == pytest.approx((1 + 1 + 1 + 1 + 0.25 + 0) / 6)
    found = told["attributes"]
    assert list(found) == ["helpfulness", "correctness"]
    assert found["helpfulness"]["n"] == 5 and found["helpfulness"]["error"] == pytest.approx(0.8)
    truth, said = [4, 0, 1, 1, 3], [3, 1, 2, 0, 3]
    assert found["helpfulness"]["pearson"] == pytest.approx(np.corrcoef(truth, said)[0, 1])
    assert found["correctness"] == {"error": 0.25, "pearson": None, "spearman": None, "n": 1}
    # Only two responses to one prompt with different labels are compared: 4 and 0 of prompt a.
    assert (told["pair_accuracy"], told["pairs"]) == (1.0, 1)
    rewards[1, 4] = 3.0
    assert measures.labels(OUTPUTS, "helpfulness").tell(rows, rewards)["pair_accuracy"] == 0.0  # a tie is no success
    assert measures.labels(OUTPUTS, "verbosity").tell(rows, rewards)["pair_accuracy"] is None


def test_what_is_told_of_pairs():
    rows = [Sample((), targets=torch.tensor([strength], dtype=torch.float64)) for strength in (1.0, 2.0)]
    told = measures.pairs("scaled", 4).tell(rows, torch.tensor([[1.0, 1.0], [3.0, 1.0]], dtype=torch.float64))
    expected = (np.log(2) + 2 * np.log1p(np.exp(-2))) / 2
    assert told == {"loss": pytest.approx(expected), "pair_accuracy": 0.5, "pairs": 2}
    assert measures.in_words({**told, "loss": 0.25}) == "loss 0.250, 50.0 % of 2 pairs"


def test_a_row_that_is_not_finite_is_named():
    from nemo_sdg.training.validation import Validation

    rows = [replace(sample("a", 1), line=line) for line in (3, 7)]
    settings = replace(SETTINGS, validate_every=1)
    held_out = Samples(rows, {}, {}, "held-out.jsonl")
    validation = Validation(held_out, measures.tokens(), settings, None, reward=True, curve=[], on_told=print)
    with pytest.raises(UserError, match=r"held-out.jsonl, after step 5.*1 rows: lines 7"):
        validation._refuse_not_finite(torch.tensor([[1.0, 2.0], [1.0, float("nan")]]), 5)
