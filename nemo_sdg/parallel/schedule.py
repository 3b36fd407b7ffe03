"""The pipeline schedule of a training step, played through before anything runs.

The order of each stage's work is asked of Megatron itself (NVIDIA/Megatron-LM core_v0.15.3:
megatron/core/pipeline_parallel/schedules.py); what is added is who waits for whom. A backward pass counts as two
forward passes (Narayanan et al. 2021, arXiv 2104.04473, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from megatron.core.pipeline_parallel import schedules

FORWARD, BACKWARD = "forward", "backward"
_COST = {FORWARD: 1.0, BACKWARD: 2.0}

Work = tuple[str, int, int]
"""(forward or backward, micro batch, virtual stage)"""


@dataclass(frozen=True)
class Played:
    """What became of a schedule."""

    idle: float
    """Share of its time that a stage waits, of the mean stage: the pipeline bubble."""
    in_flight: list[int]
    """By stage, the most micro batches of a virtual stage whose activations it holds at a time."""
    stuck: list[str]
    """What the stages wait for in vain; empty where the step comes to its end."""


def orders(pp: int, micro_batches: int, virtual_stages: int = 1) -> list[list[Work]]:
    """What each stage does, in order."""
    table = schedules.get_schedule_table(micro_batches, virtual_stages, pp)
    made = []
    for stage in range(pp):
        group = SimpleNamespace(size=lambda: pp, rank=lambda stage=stage: stage)
        size = virtual_stages if virtual_stages > 1 else None
        talk = SimpleNamespace(pp_group=group, virtual_pipeline_model_parallel_size=size)
        _, _, warmup, _ = schedules.get_pp_rank_microbatches(micro_batches, virtual_stages, pp, p2p_communicator=talk)
        signs = schedules.convert_schedule_table_to_order(warmup, virtual_stages, table)
        forward = iter([(FORWARD, batch, chunk) for batch, chunk in table])
        backward = iter([(BACKWARD, batch, virtual_stages - 1 - chunk) for batch, chunk in table])
        made.append([next(forward if sign > 0 else backward) for sign in signs])
    return made


def play(wanted: list[list[Work]], virtual_stages: int = 1) -> Played:
    """Lets the stages work in their orders; each piece of work waits for what it is made of.

    A forward pass needs that of the stage before (of the last stage, one virtual stage earlier), a backward pass that of
    the stage behind; the last stage's goes back from its own forward pass.
    """
    pp = len(wanted)
    ended: dict[tuple[int, Work], float] = {}
    at, clock, held, most = [0] * pp, [0.0] * pp, [0] * pp, [0] * pp
    moved = True
    while moved:
        moved = False
        for stage, order in enumerate(wanted):
            while at[stage] < len(order):
                work = order[at[stage]]
                needed = _needed(stage, work, pp, virtual_stages)
                if needed is not None and needed not in ended:
                    break
                begin = max(clock[stage], ended[needed] if needed is not None else 0.0)
                ended[stage, work] = clock[stage] = begin + _COST[work[0]]
                held[stage] += 1 if work[0] == FORWARD else -1
                most[stage] = max(most[stage], held[stage])
                at[stage] += 1
                moved = True
    stuck = [
        f"stage {stage} waits before the {kind} pass of micro batch {batch}"
        for stage, order in enumerate(wanted)
        if at[stage] < len(order)
        for kind, batch, _ in [order[at[stage]]]
    ]
    busy = sum(_COST[kind] for order in wanted for kind, _, _ in order)
    return Played(1.0 if stuck else 1 - busy / (pp * max(clock)), most, stuck)


def _needed(stage: int, work: Work, pp: int, virtual_stages: int) -> tuple[int, Work] | None:
    kind, batch, chunk = work
    if kind == FORWARD:
        if stage:
            return stage - 1, work
        return (pp - 1, (FORWARD, batch, chunk - 1)) if chunk else None
    if stage < pp - 1:
        return stage + 1, work
    if chunk < virtual_stages - 1:
        return 0, (BACKWARD, batch, chunk + 1)
    return stage, (FORWARD, batch, chunk)
