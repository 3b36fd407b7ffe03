"""From times to rates: each formula of `plan.timing` is linear in seconds per layer, row, sequence, operation and byte.

The coefficients are those that are not negative and have the least sum of squared relative errors (Lawson and Hanson's
NNLS, as scipy has it).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import nnls

from nemo_sdg.calibrate.samples import PassTimes, StepTimes, Times
from nemo_sdg.parallel.topology import Grid
from nemo_sdg.plan import timing
from nemo_sdg.plan.activations import ITEM_BYTES
from nemo_sdg.plan.machine import Machine
from nemo_sdg.plan.memory import GRADIENT_BYTES, OPTIMIZER_BYTES, rank_parameters
from nemo_sdg.plan.timing import Laid

if TYPE_CHECKING:
    from nemo_sdg.calibrate.pieces import Measured

Errors = dict[str, tuple[int, float, float]]
"""By kind: how many times, the median relative error of the formula, the largest."""


def rates(measured: Measured) -> tuple[dict[str, float], Errors]:
    """The settings `hardware.*` that the measurements give, and how well they give them back."""
    errors: Errors = {}

    def solved(
        kind: str, names: Sequence[str], rows: list[list[float]], times: list[Any], known: Sequence[float] = (0.0,)
    ) -> dict[str, float]:
        seconds = np.array([one.seconds for one in times])
        left = 1 - np.array(known) / seconds  # of each time, without what other measurements tell of it
        matrix = np.array(rows) / seconds[:, None]
        scale = matrix.max(axis=0)
        scale[scale == 0] = 1.0
        found, _ = nnls(matrix / scale, left)
        off = np.abs(matrix / scale @ found - left)
        errors[kind] = (len(off), statistics.median(off.tolist()), float(off.max()))
        return dict(zip(names, (found / scale).tolist()))

    names = ("step_s", "decode_layer_s", "row_s", "operation", "byte")
    decode = solved("decode steps", names, [_decode(t) for t in measured.decode], measured.decode)
    known = [_without_rows(one, decode["row_s"]) for one in measured.passes]
    names = ("pass_s", "layer_s", "sequence_s", "operation")
    passes = solved("prefill and scoring passes", names, [_pass(t) for t in known], known)
    names = ("train_step_s", "micro_batch_s", "train_layer_s", "operation")
    told = [_step_known(t, measured, passes["sequence_s"]) for t in measured.steps]
    train = solved("training steps", names, [_step(t) for t in measured.steps], measured.steps, told)

    def efficiency(seconds: float) -> float:
        return min(1.0, 1 / (seconds * measured.flops)) if seconds else 1.0

    made = {
        "flops": measured.flops,
        "bandwidth_bytes_s": measured.bandwidth_bytes_s,
        "bandwidth_efficiency": 1.0,
        "decode_efficiency": efficiency(decode["operation"]),
        "forward_efficiency": efficiency(passes["operation"]),
        "train_efficiency": efficiency(train["operation"]),
        "kv_passes": decode["byte"] * measured.bandwidth_bytes_s,
        "sampling_passes": 0.0,  # in row_s
        "fit_s": statistics.median(measured.fit_s),
        **{key: decode[key] for key in ("step_s", "decode_layer_s", "row_s")},
        **{key: passes[key] for key in ("pass_s", "layer_s", "sequence_s")},
        **{key: train[key] for key in ("train_step_s", "micro_batch_s", "train_layer_s")},
    }
    if measured.ranks > 1:
        made |= {"message_s": measured.message_s, "link_bytes_s": measured.link_bytes_s}
    return {key: float(f"{value:.4g}") for key, value in made.items()}, errors


def _laid(one: Any, reward: bool = False) -> Laid:
    """The model alone on a rank; of the machine nothing is asked."""
    return Laid(one.shape, reward, Grid(), one.dtype, Machine("cpu", {}, {}), [])


def _decode(one: Times) -> list[float]:
    laid, layers = _laid(one), one.shape.num_layers
    flops = one.rows * (layers * laid.layer_flops(one.context) + laid.head_flops())
    keys = 2 * one.shape.num_query_groups * one.shape.kv_channels * one.context * ITEM_BYTES[one.dtype]
    return [1.0, layers, one.rows, flops, one.rows * layers * keys]


def _without_rows(one: PassTimes, row_s: float) -> PassTimes:
    """The pass without what choosing tokens takes of it, which decode steps tell better."""
    return replace(one, seconds=max(one.seconds - one.rows * row_s, one.seconds / 4), rows=0)


def _pass(one: PassTimes) -> list[float]:
    laid, layers = _laid(one), one.shape.num_layers
    flops = one.tokens * layers * laid.layer_flops(one.seen) + one.read * laid.head_flops()
    return [1.0, layers, layers * one.pieces, flops]


def _step(one: StepTimes) -> list[float]:
    laid, layers, count = _laid(one), one.shape.num_layers, one.micro_batches
    seen = one.width / max(1.0, one.pieces / one.rows) / 2
    flops = 3 * one.rows * one.width * (layers * laid.layer_flops(seen) + laid.head_flops())
    return [1.0, count, count * layers, count * flops]


def _step_known(one: StepTimes, measured: Measured, sequence_s: float) -> float:
    """Seconds of a step that memory's bandwidth, messages and passes tell: moving the optimizer's bytes, adding up gradients
    over the replicas, and its sequences."""
    layers = one.shape.num_layers
    parameters = rank_parameters(one.shape, 1, layers, first=True, last=True)
    each = 2 * ITEM_BYTES[one.dtype] + GRADIENT_BYTES[one.dtype] + 2 * OPTIMIZER_BYTES[one.dtype] / measured.shards
    moved = parameters * each
    numbers = {"message_s": measured.message_s, "link_bytes_s": measured.link_bytes_s, "gpus_per_node": measured.ranks}
    machine = Machine("cpu", numbers, {})
    added = machine.all_reduce_s(parameters * GRADIENT_BYTES[one.dtype], measured.ranks, measured.ranks)
    added += timing.step_messages_s(machine, measured.ranks)
    return moved / measured.bandwidth_bytes_s + added + 3 * one.micro_batches * layers * one.pieces * sequence_s
