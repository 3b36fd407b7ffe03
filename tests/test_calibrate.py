"""Rates from times: a machine whose rates are known gives times, and the times give the rates back."""

from __future__ import annotations

import dataclasses

import pytest

from nemo_sdg import calibrate, cli
from nemo_sdg.calibrate import solving
from nemo_sdg.calibrate.pieces import Measured, _shape
from nemo_sdg.calibrate.samples import PassTimes, StepTimes, Times
from nemo_sdg.parallel.topology import Grid
from nemo_sdg.plan.machine import RATES, Machine
from nemo_sdg.plan.memory import GRADIENT_BYTES, OPTIMIZER_BYTES, StagePlan, rank_parameters
from nemo_sdg.plan.timing import Laid, decode_s, pass_s, step_s

TRUE = {
    **{key: 0.0 for key in RATES}, "gpus_per_node": 1, "flops": 1e11, "bandwidth_bytes_s": 3e10, "bandwidth_efficiency": 1.0,
    "decode_efficiency": 0.3, "forward_efficiency": 0.8, "train_efficiency": 0.6, "kv_passes": 4.0, "step_s": 1e-3,
    "decode_layer_s": 4e-4, "row_s": 2e-5, "pass_s": 2e-3, "layer_s": 6e-4, "sequence_s": 5e-5, "micro_batch_s": 3e-3,
    "train_step_s": 2e-2, "train_layer_s": 3e-3, "link_bytes_s": 1.0, "network_bytes_s": 1.0,
}  # fmt: skip
SHAPES = [_shape(layers, width) for layers, width in ((2, 64), (6, 64), (3, 128), (2, 256), (3, 512))]


MESSAGES = {"message_s": 8e-4, "link_bytes_s": 2e9}


def laid(shape, weights: int = 0, gradients: int = 0, optimizer: int = 0, ranks: int = 1) -> Laid:
    stage = StagePlan(0, 0, weights, 0, 0, (0, 0, 0), gradients, optimizer)
    numbers = TRUE if ranks == 1 else {**TRUE, **MESSAGES, "gpus_per_node": ranks}
    return Laid(shape, False, Grid(dp=ranks), "fp32", Machine("cpu", numbers, {}), [stage])


def measured(ranks: int = 1) -> Measured:
    """What a machine of the true rates would be seen to take, by the plan's own formulas."""
    found = Measured({}, TRUE["flops"], TRUE["bandwidth_bytes_s"], fit_s=[1.0, 2.0, 9.0])
    if ranks > 1:
        found.ranks, found.message_s, found.link_bytes_s = ranks, *MESSAGES.values()
    for shape in SHAPES:
        for rows, context in ((8, 52), (64, 52), (16, 306)):
            found.decode.append(Times(decode_s(laid(shape), rows, context), shape, "fp32", rows, context))
        for tokens, pieces, seen, rows in ((512, 12.8, 20, 50), (512, 8, 150, 0), (2048, 64, 16, 0), (1600, 4, 200, 0)):
            one = PassTimes(0.0, shape, "fp32", tokens, pieces, seen, 0, rows)
            took = pass_s(laid(shape), tokens, pieces, seen, 0, rows)
            found.passes.append(dataclasses.replace(one, seconds=took))
        count = rank_parameters(shape, 1, shape.num_layers, first=True, last=True)
        of = laid(shape, 4 * count, GRADIENT_BYTES["fp32"] * count, OPTIMIZER_BYTES["fp32"] * count, ranks)
        for rows, width, pieces, micro in ((8, 32, 0.0, 2), (4, 256, 0.0, 1), (1, 384, 12.0, 3)):
            took = step_s(of, rows=rows, width=width, pieces=pieces, micro_batches=micro, chunks=1)
            found.steps.append(StepTimes(took, shape, "fp32", rows, width, pieces, micro))
    return found


@pytest.mark.parametrize("ranks", [1, 3])
def test_known_rates_come_back(ranks):
    """Also from replicas that tell each other their gradients."""
    rates, errors = solving.rates(measured(ranks))
    assert {key: rates.get(key) for key in MESSAGES} == (dict.fromkeys(MESSAGES) if ranks == 1 else MESSAGES)
    assert rates["fit_s"] == 2.0 and rates["sampling_passes"] == 0.0
    for key in ("flops", "bandwidth_bytes_s", "decode_efficiency", "forward_efficiency", "train_efficiency", "kv_passes",
                "step_s", "decode_layer_s", "row_s", "pass_s", "layer_s", "sequence_s", "micro_batch_s", "train_step_s",
                "train_layer_s"):  # fmt: skip
        assert rates[key] == pytest.approx(TRUE[key], rel=0.02), key
    assert all(worst < 0.01 for _, _, worst in errors.values()) and set(errors) == {
        "decode steps", "prefill and scoring passes", "training steps"
    }  # fmt: skip


def test_errors_are_those_of_the_rates_that_are_kept():
    """Steps whose bytes and sequences take longer than other measurements tell: the rest has to make up for it."""
    slow = measured()
    slow.steps = [dataclasses.replace(one, seconds=one.seconds + 3 * solving._step_known(one, slow, 5e-5)) for one in slow.steps]
    rates, errors = solving.rates(slow)
    machine = Machine("cpu", {**TRUE, **rates}, {})
    off = []
    for one in slow.steps:
        count = rank_parameters(one.shape, 1, one.shape.num_layers, first=True, last=True)
        of = laid(one.shape, 4 * count, GRADIENT_BYTES["fp32"] * count, OPTIMIZER_BYTES["fp32"] * count)
        took = step_s(dataclasses.replace(of, machine=machine), rows=one.rows, width=one.width, pieces=one.pieces,
                      micro_batches=one.micro_batches, chunks=1)  # fmt: skip
        off.append(abs(took / one.seconds - 1))
    assert max(off) == pytest.approx(errors["training steps"][2], rel=0.02) and max(off) > 0.01


def test_bad_words(tmp_path, capsys, monkeypatch):
    def refused(*words: str) -> str:
        assert cli.main(["calibrate", *words]) == 2
        return capsys.readouterr().err

    assert "there is no such dtype, found fp8, expected one of fp64, fp32, bf16" in refused(str(tmp_path / "x"), "--dtype", "fp8")
    assert "a file is to be written, found a folder" in refused(str(tmp_path))
    assert "there is no such folder" in refused(str(tmp_path / "a" / "b"))
    monkeypatch.setattr(calibrate, "_gpus", lambda: 2)
    assert "--ranks: each rank needs a GPU of its own, found 3, expected at most 2" in refused(str(tmp_path / "x"), "--ranks", "3")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "it starts its ranks itself, found torchrun" in refused(str(tmp_path / "x"))


@pytest.mark.parametrize("seen, expected", [(None, 4), ("0", 1), ("1,3", 2), ("", 0), ("0,1,2,3,4,5", 4)])
def test_gpus_that_may_be_used(monkeypatch, seen, expected):
    monkeypatch.setattr(calibrate.Path, "glob", lambda folder, name: iter([f"{folder}/{name}"] * 4))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert calibrate._gpus() == expected
