"""Numbers that are not finite stop all ranks before the update, and the message names step, rank and rows."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from ranks import run_ranks

from nemo_sdg.config import Models
from nemo_sdg.errors import UserError
from training.test_fit import SETTINGS, train

WHERE = re.compile(r"sft training, step (\d+), rank (\d+), (\S+) lines ([\d, ]+): (.*) is not finite, found ([^,]+), ")


def refused(mesh, world, out, **more):
    """(step, rank, file, lines, what, found) of the message, and whether the weights are as they were."""
    from nemo_sdg.training.strategy import FitStrategy

    live = {}
    step = FitStrategy.training_step

    def remembering(self, *args, **kwargs):
        live["model"] = list(self.model)
        live["before"] = [p.detach().clone() for chunk in self.model for p in chunk.parameters()]
        return step(self, *args, **kwargs)

    FitStrategy.training_step = remembering
    with pytest.raises(UserError) as caught:
        train(mesh, world, out, **more)
    assert not out.exists()
    now = [p for chunk in live["model"] for p in chunk.parameters()]
    found, rank, file, lines, what, number = WHERE.match(str(caught.value)).groups()
    untouched = all(torch.equal(a, b) for a, b in zip(now, live["before"]))
    assert file == str(world / "sft.jsonl")
    return int(found), int(rank), [int(line) for line in lines.split(", ")], what, number, untouched


def diverges(mesh, world, out):
    settings = replace(SETTINGS, learning_rate=1e30, warmup_steps=0)
    return refused(mesh, world, out, settings=settings, models=Models(dtype="fp32"))


def test_a_loss_that_is_not_finite_stops_all_ranks(world, tmp_path):
    found, other = run_ranks(diverges, world, tmp_path / "out", pp=2)
    assert found == other and (found[:2], found[3:]) == ((1, 1), ("the loss", "nan", True))
    assert len(found[2]) == 8  # every micro batch of the step


def spoils(mesh, world, out, how):
    """One micro batch of the third step of rank 1, in its loss or in its gradient alone."""
    from nemo_sdg.training.tasks import TASKS

    honest, seen = TASKS["sft"], []

    def objective(settings):
        count_and_sum = honest.objective(settings)

        def spoilt(batch, output):
            total, count = count_and_sum(batch, output)
            seen.append(batch["lines"].tolist())
            if mesh.rank == 1 and len(seen) == 6:
                total = total * float("nan") if how == "loss" else total + (output.sum() * 0).sqrt()
            return total, count

        return spoilt

    TASKS["sft"] = replace(honest, objective=objective)
    return refused(mesh, world, out), seen


@pytest.mark.parametrize("how, what", [("loss", "the loss"), ("gradient", "a gradient")])
def test_the_replica_that_went_wrong_is_named_and_its_rows(world, tmp_path, how, what):
    """Two micro batches a step on each replica: a loss is laid to its micro batch, a gradient to both."""
    (found, _), (other, seen) = run_ranks(spoils, world, tmp_path / "out", how, dp=2)
    assert found == other and (found[:2], found[3], found[5]) == ((2, 1), what, True)
    assert found[2] == (seen[5] if how == "loss" else sorted(seen[4] + seen[5]))


def overflows(mesh, world, out):
    """Gradients of both replicas are finite, and their sum is not."""
    from nemo_sdg.training.strategy import FitStrategy

    finite = FitStrategy._gradients_are_finite
    calls = []
    # Called before and after the replicas are added up.
    FitStrategy._gradients_are_finite = lambda self: (calls.append(0), len(calls) % 2 == 1 or finite(self) and False)[1]
    return refused(mesh, world, out)


def test_replicas_whose_sum_overflows(world, tmp_path):
    found, other = run_ranks(overflows, world, tmp_path / "out", dp=2)
    assert found == other and found[:2] == (0, 0) and len(found[2]) == 8
    assert found[3] == "the sum of the replicas' gradients"
