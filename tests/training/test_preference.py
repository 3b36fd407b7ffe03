"""Preference tuning: what is compared with what, and that it is the same under every topology."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import TOPOLOGIES, run_ranks

from nemo_sdg.config import Models, Preference
from nemo_sdg.errors import RowError, StoreError, UserError
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.training.losses import dpo, rpo
from nemo_sdg.training.preference import preference_loss, preference_sample
from training import worlds
from training.test_topologies import weights

SETTINGS = Preference(
    steps=6, global_batch_size=8, micro_batch_size=2, max_length=128, learning_rate=2e-3, warmup_steps=2, clip_grad=0.0,
    beta=0.1, sft_weight=1e-3,
)  # fmt: skip
FP64 = Models(dtype="fp64")
BOTH = ("dpo", "rpo")


def train(mesh: Any, world: Path, out: Path, settings: Preference = SETTINGS, **more: Any) -> list[float]:
    from nemo_sdg.training.fit import fit

    options = {"models": FP64, "start": world / "base", "rows": world / "pairs.jsonl", "seed": 5, **more}
    return fit("preference", settings, out=out, mesh=mesh, **options)["losses"]


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """By objective the losses and the trained weights of one rank."""
    root = tmp_path_factory.mktemp("alone")
    found = {}
    for name in BOTH:
        losses = run_ranks(train, world, root / name, replace(SETTINGS, objective=name))[0]
        found[name] = losses, run_ranks(weights, root / name)[0]
    return found


PACKED = dict(micro_batch_size=1, packed_sequence_size=256)
GRIDS = {name: dict(zip(("tp", "pp", "dp"), sizes)) for name, sizes in TOPOLOGIES.items()}
GRIDS["tp2, sequence parallel"] = dict(tp=2, sequence_parallel=True)
WAYS = {"": {}, "packed": PACKED, "no accumulation": dict(micro_batch_size=4)}
"""One replica cuts a step into four micro batches, without accumulation into two, or, packed, into rows of 256 tokens."""
QUICK = [("rpo", grid, "") for grid in GRIDS if grid != "one"]
QUICK += [("dpo", "tp2pp2", "packed"), ("dpo", "dp2", "no accumulation"), ("rpo", "tp2, sequence parallel", "packed")]



def assert_equal(found: tuple[list[float], dict], expected: tuple[list[float], dict]) -> None:
    assert found[0] == pytest.approx(expected[0], abs=1e-9)
    assert found[1].keys() == expected[1].keys()
    for key, value in found[1].items():
        np.testing.assert_allclose(value, expected[1][key], rtol=0, atol=1e-9, err_msg=key)


@pytest.mark.parametrize(("objective", "grid", "way"), QUICK)
def test_losses_and_weights_are_those_of_one_rank(world, alone, tmp_path, objective, grid, way):
    settings, grid = replace(SETTINGS, objective=objective, **WAYS[way]), GRIDS[grid]
    more = {"sequence_parallel": grid.get("sequence_parallel", False)}
    for losses in run_ranks(lambda mesh: train(mesh, world, tmp_path / "out", settings, **more), **grid):
        assert_equal((losses, {}), (alone[objective][0], {}))
    assert_equal((losses, run_ranks(weights, tmp_path / "out")[0]), alone[objective])


def test_what_is_compared_changes(alone):
    """Else equal losses would say little."""
    (first, *_, last), (other, *_) = alone["dpo"][0], alone["rpo"][0]
    assert last < first - 0.01 and abs(first - other) > 0.01


# ---- rows


@pytest.fixture(scope="module")
def tokenizer(world) -> Tokenizer:
    return Tokenizer(world / "tokenizer.model")


ROW = {**worlds.pair_rows(1)[0], "chosen_reward": 3.5, "rejected_reward": 1.0}


def test_the_response_and_the_end_of_its_turn_are_compared(tokenizer):
    sample = preference_sample(ROW, tokenizer)
    assert sample.targets.tolist() == [ROW["chosen_reward"], ROW["rejected_reward"]]
    for tokens, labels, name in zip(sample.sequences, sample.labels, ("chosen_response", "rejected_response")):
        ids = tokenizer.encode(ROW["prompt"] + ROW[name])
        response = tokenizer.encode(ROW[name])
        assert tokens.tolist() == ids[:-1] and labels[labels >= 0].tolist() == response == ids[-len(response) :]
        assert labels.tolist() == [-1] * (len(ids) - 1 - len(response)) + response


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "no prompt"),
        ({"chosen_response": None}, "no chosen_response"),
        ({"rejected_response": "red\n"}, "rejected_response does not end its turn"),
        ({"rejected_response": ROW["chosen_response"]}, "both responses are the same"),
        ({"rejected_reward": float("nan")}, "not a finite number"),
        ({"rejected_reward": 10**400}, "not a finite number"),
        ({"chosen_reward": None}, "not a finite number"),
        ({"chosen_reward": True}, "not a finite number"),
        ({"prompt": "gre", "chosen_response": "en\n<extra_id_1>"}, "share a token"),
    ],
)
def test_a_row_that_cannot_be_compared(tokenizer, change, message):
    with pytest.raises(RowError, match=message):
        preference_sample({**ROW, **change}, tokenizer)


# ---- loss


def loss_of(world: Path, settings: Preference, reference: list[float], logits=None) -> tuple[float, Any]:
    """(sum of the losses of one pair, its gradient by the logits) under logits of our choosing."""

    def work(mesh):
        from nemo_sdg.training.batches import collate

        sample = preference_sample(ROW, Tokenizer(world / "tokenizer.model"))
        sample = replace(sample, targets=torch.cat((sample.targets, torch.tensor(reference, dtype=torch.float64))))
        batch = collate([[sample]], sample.num_tokens + 3)
        logits_BSV = torch.zeros(1, sample.num_tokens + 3, 128, dtype=torch.float64) if logits is None else logits.clone()
        logits_BSV.requires_grad_()
        total, count = preference_loss(settings)(batch, logits_BSV)
        total.backward()
        assert count.item() == 1
        return total.item(), logits_BSV.grad.numpy(), [int((labels >= 0).sum()) for labels in sample.labels]

    return run_ranks(work)[0]


def test_known_answers(world):
    """Uniform logits give each token of a response -ln V."""
    settings = replace(SETTINGS, objective="dpo", sft_weight=0.0)
    counts = loss_of(world, settings, [0.0, 0.0])[2]
    uniform = [-math.log(128) * count for count in counts]
    assert loss_of(world, settings, uniform)[0] == pytest.approx(math.log(2), abs=1e-12)
    with_sft = loss_of(world, replace(settings, sft_weight=0.5), uniform)[0]
    assert with_sft == pytest.approx(math.log(2) + 0.5 * counts[0] * math.log(128), abs=1e-12)
    gap = (ROW["chosen_reward"] - ROW["rejected_reward"]) * 2.0 / SETTINGS.beta
    settings = replace(settings, objective="rpo", eta=2.0)
    agrees, gradient, _ = loss_of(world, settings, [uniform[0] - gap, uniform[1]])
    assert agrees == pytest.approx(0.0, abs=1e-12) and np.abs(gradient).max() < 1e-12
    assert loss_of(world, settings, uniform)[0] > 0.1


@pytest.mark.parametrize("objective", BOTH)
def test_the_gradient_against_finite_differences(world, objective):
    draw = torch.Generator().manual_seed(1)
    length = preference_sample(ROW, Tokenizer(world / "tokenizer.model")).num_tokens + 3
    logits = torch.randn(1, length, 128, dtype=torch.float64, generator=draw)
    settings = replace(SETTINGS, objective=objective, sft_weight=0.1)
    _, gradient, _ = loss_of(world, settings, [-20.0, -30.0], logits)
    direction = torch.randn(logits.shape, dtype=torch.float64, generator=draw)
    step = 1e-5
    above, below = (loss_of(world, settings, [-20.0, -30.0], logits + sign * step * direction)[0] for sign in (1, -1))
    assert (above - below) / (2 * step) == pytest.approx((gradient * direction.numpy()).sum(), rel=1e-7)


@pytest.mark.parametrize("objective", BOTH)
def test_a_batch_has_the_sum_of_the_published_losses(world, objective):
    """Of several pairs in rows of their own and in shared rows, against `losses.dpo` and `losses.rpo`."""

    def work(mesh):
        from nemo_sdg.training.batches import collate

        rows = [preference_sample(row, Tokenizer(world / "tokenizer.model")) for row in worlds.pair_rows(4)]
        draw = torch.Generator().manual_seed(2)
        rows = [replace(x, targets=torch.cat((x.targets, -30 * torch.rand(2, dtype=torch.float64, generator=draw)))) for x in rows]
        found = []
        for shared in ([[x] for x in rows], [rows[:3], rows[3:]]):
            width = max(sum(x.num_tokens for x in row) for row in shared)
            batch = collate(shared, width)
            flat = torch.randn(width * len(shared), 128, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
            logits_BSV = flat.view(len(shared), width, 128)
            total, count = preference_loss(replace(SETTINGS, objective=objective, sft_weight=0.25))(batch, logits_BSV)
            logs_BSV, sums = logits_BSV.log_softmax(-1), []
            for row_SV, labels_S, sizes in zip(logs_BSV, batch["labels"], batch["sizes"]):
                ends = np.cumsum([0, *sizes])
                for begin, end in zip(ends, ends[1:]):
                    part = labels_S[begin:end]
                    sums.append(row_SV[begin:end][range(end - begin), part.clamp(min=0)][part >= 0].sum())
            logs, targets = torch.stack(sums).view(-1, 2), torch.stack([x.targets for x in rows])
            pairs = (logs[:, 0], logs[:, 1], targets[:, 2], targets[:, 3])
            mean = dpo(*pairs, 0.1) if objective == "dpo" else rpo(*pairs, targets[:, 0], targets[:, 1], 0.1, 1.0)
            found.append((total.item(), count.item(), (4 * mean - 0.25 * logs[:, 0].sum()).item()))
        return found

    for total, count, expected in run_ranks(work)[0]:
        assert count == 4 and total == pytest.approx(expected, abs=1e-10)


# ---- reference


def _first_losses(mesh: Any, world: Path, out: Path, settings: Preference) -> list[float]:
    return train(mesh, world, out, replace(settings, steps=1))


@pytest.mark.parametrize("grid", [dict(tp=2, pp=2), dict(dp=2)], ids=str)
def test_the_reference_is_the_start(world, tmp_path, grid):
    """Before the first step the policy is the reference."""
    settings = replace(SETTINGS, objective="dpo", sft_weight=0.0)
    for (loss,) in run_ranks(_first_losses, world, tmp_path / "out", settings, **grid):
        assert loss == pytest.approx(math.log(2), abs=1e-9)


def _log_probs(mesh: Any, world: Path, out: Path) -> list[list[float]]:
    """Of the kept file, and of plain forward passes on one rank."""
    from nemo_sdg.training import fit

    commit = fit._Fit._commit
    kept = []

    def looking(job, *args):
        kept.extend(json.loads(next(job.work.glob("reference-*.json")).read_text())["log_probs"])
        commit(job, *args)

    fit._Fit._commit = looking
    train(mesh, world, out, replace(SETTINGS, steps=1))
    if mesh.world_size > 1:
        return kept
    from nemo_sdg.engine.load import load_model

    model, tokenizer = load_model(world / "base", mesh, dtype="fp64")
    plain = []
    for row in worlds.pair_rows(37):
        sample = preference_sample(row, tokenizer)
        with torch.no_grad():
            logs = [model(x[None], torch.arange(len(x))[None], None)[0].log_softmax(-1) for x in sample.sequences]
        picked = [one[range(len(y)), y.clamp(min=0)][y >= 0].sum().item() for one, y in zip(logs, sample.labels)]
        plain.append(picked)
    return [kept, plain]


def test_the_reference_against_plain_forward_passes(world, tmp_path):
    kept, plain = run_ranks(_log_probs, world, tmp_path / "one")[0]
    np.testing.assert_allclose(kept, plain, rtol=0, atol=1e-9)
    shared_out = run_ranks(_log_probs, world, tmp_path / "four", pp=2, dp=2)[0]
    np.testing.assert_allclose(shared_out, plain, rtol=0, atol=1e-9)


def _killed(mesh: Any, world: Path, out: Path, settings: Preference) -> None:
    """Ends as by a kill in the first step."""
    stop = lambda step, loss: os._exit(0)  # noqa: E731
    train(mesh, world, out, settings, on_step=stop)


def _goes_on(mesh: Any, world: Path, out: Path, settings: Preference, rows: Path) -> tuple[list[float], int]:
    """Its losses, and how often the reference was computed."""
    from nemo_sdg.training import reference

    compute, computed = reference.measured, []
    reference.measured = lambda *args, **more: (computed.append(1), compute(*args, **more))[1]
    return train(mesh, world, out, settings, rows=rows), len(computed)


def test_a_killed_fit_leaves_its_reference(world, alone, tmp_path):
    """Also to one with another rate, which has nothing else in common with it."""
    with pytest.raises(AssertionError, match="rank 0 ended without a result"):
        run_ranks(_killed, world, tmp_path / "out", replace(SETTINGS, learning_rate=1e-3))
    assert len(list((tmp_path / ".out.fit").glob("reference-*.json"))) == 1
    losses, computed = run_ranks(_goes_on, world, tmp_path / "out", SETTINGS, world / "pairs.jsonl")[0]
    assert (losses, computed) == (alone["rpo"][0], 0)


def _kept(mesh: Any, world: Path, work: Path) -> None:
    from nemo_sdg.checkpoints.folder import ModelFolder
    from nemo_sdg.training import cpu, reference
    from nemo_sdg.training.samples import read

    compute, computed = reference.measured, []
    reference.measured = lambda *args, **more: (computed.append(1), compute(*args, **more))[1]

    def ask(rows: Path, dtype: str, length: int = 128) -> list[torch.Tensor]:
        start = ModelFolder.open(world / "base")
        samples = read(preference_sample, rows, Tokenizer(start.tokenizer), length)
        models = Models(dtype=dtype)
        with cpu.scope():
            made = reference.with_reference(samples, SETTINGS, models=models, start=start, work=work, mesh=mesh)
        return [sample.targets for sample in made.rows]

    first = ask(world / "pairs.jsonl", "fp64")
    again = ask(world / "pairs.jsonl", "fp64")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and len(computed) == 1
    ask(world / "pairs.jsonl", "fp32")
    assert len(computed) == 2
    others = worlds.write_rows(work / "others.jsonl", worlds.pair_rows(37, seed=1))
    ask(others, "fp64")
    assert len(computed) == 3
    shorter = ask(others, "fp64", 40)
    assert len(shorter) < 37 and len(computed) == 4
    for kept in work.glob("reference-*.json"):
        kept.write_text(kept.read_text().replace("-", "+", 1))
    with pytest.raises(StoreError, match="reference-.*: the file was torn or altered"):
        ask(others, "fp64")


def test_a_reference_is_of_one_start_one_dtype_and_its_rows(world, tmp_path):
    run_ranks(_kept, world, tmp_path)


def _broken_start(mesh: Any, world: Path, tmp_path: Path) -> str:
    from nemo_sdg.training import reference

    model_of = reference.load_model

    def broken(*args, **options):
        model, tokenizer = model_of(*args, **options)
        if mesh.first_stage:
            with torch.no_grad():
                model.embedding.word_embeddings.weight[tokenizer.encode("seven")[0]] = float("inf")
        return model, tokenizer

    reference.load_model = broken
    with pytest.raises(UserError) as caught:
        train(mesh, world, tmp_path / "out", rows=tmp_path / "rows.jsonl")
    return str(caught.value)


def test_a_reference_that_is_not_finite_names_the_row(world, tmp_path):
    rows = [row for row in worlds.pair_rows(60) if "seven" not in json.dumps(row)][:9]
    rows[4] = {**rows[4], "rejected_response": "seven\n<extra_id_1>"}
    worlds.write_rows(tmp_path / "rows.jsonl", rows)
    for told in run_ranks(_broken_start, world, tmp_path, pp=2, dp=2):
        assert told.startswith(f"{tmp_path}/rows.jsonl:5: the reference gives a log-probability that is not finite, found [-")
        assert "nan]" in told
