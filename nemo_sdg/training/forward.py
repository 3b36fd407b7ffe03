"""Forward passes over batches of samples: one micro batch within a step, or many without gradients.

Axes: B rows, S tokens, V vocabulary (`_local`: this tensor-parallel rank's), N sequences, M samples, A reward outputs,
W numbers of a sample.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterable, Iterator, Sequence

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor
from torch import distributed as dist

from nemo_sdg.models.attention import Segments
from nemo_sdg.parallel import device
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.training.batches import collate
from nemo_sdg.training.samples import Sample
from nemo_sdg.training.widths import padded


@contextlib.contextmanager
def interleaved(virtual_stages: int) -> Iterator[None]:
    """Within it pipeline stages have so many virtual ones: Megatron's schedules ask the process, not the model."""
    before = parallel_state.get_virtual_pipeline_model_parallel_world_size()
    parallel_state.set_virtual_pipeline_model_parallel_world_size(virtual_stages if virtual_stages > 1 else None)
    try:
        yield
    finally:
        parallel_state.set_virtual_pipeline_model_parallel_world_size(before)


def to_device(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with its tensors on this rank's device."""
    place = device.device()
    return {key: value.to(place, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()}


def forward(model: torch.nn.Module, batch: dict[str, Any], *, reward: bool) -> Tensor:
    """What this stage makes of a batch of `batches.collate`."""
    extra: dict[str, Any] = {"last": batch["last"]} if reward else {}
    if any(len(row) != 1 for row in batch["sizes"]):
        extra["packed_seq_params"] = Segments.of(batch["position_ids"], batch["sizes"])
    return model(batch["tokens"], batch["position_ids"], None, **extra)


def measured(
    chunks: Sequence[torch.nn.Module],
    samples: Sequence[Sample],
    values: Callable[[dict[str, Any], Tensor], Tensor],
    width: int,
    mesh: Mesh,
    *,
    reward: bool,
    micro_batch_size: int,
    packed_sequence_size: int | None = None,
) -> Tensor:
    """Numbers of each sample, float64 [M, W], on every rank, without gradients; each replica computes a share.

    Args:
        chunks: this rank's part of the model, one for each virtual stage.
        values: (batch of `batches.collate`, what the last stage makes of it) -> numbers of its samples, [its M, W].
        width: W.
        micro_batch_size: rows of one forward pass.
        packed_sequence_size: a row has as many samples as fit into so many tokens; None gives each a row of its own.
    """
    by_length = sorted(range(len(samples)), key=lambda i: samples[i].num_tokens)
    rows = _rows(by_length[mesh.dp_rank :: mesh.dp], samples, packed_sequence_size)
    together = [rows[i : i + micro_batch_size] for i in range(0, len(rows), micro_batch_size)]
    found = evaluate(chunks, (_collated(some, samples) for some in together), values, reward=reward)
    values_MW = torch.zeros(len(samples), width, dtype=torch.float64, device=device.device())
    if mesh.tp_rank == 0:
        for some, numbers in zip(together, found):
            values_MW[[i for row in some for i in row]] = numbers.double()
    if mesh.world_size > 1:
        dist.all_reduce(values_MW)  # one rank has the numbers of a sample, the others zeros
    return values_MW.cpu()


def _rows(order: Sequence[int], samples: Sequence[Sample], limit: int | None) -> list[list[int]]:
    rows: list[list[int]] = []
    room = 0
    for i in order:
        size = samples[i].num_tokens
        if limit is None or size > room or not rows:
            rows.append([])
            room = limit or 0
        rows[-1].append(i)
        room -= size
    return rows


def _collated(rows: Sequence[Sequence[int]], samples: Sequence[Sample]) -> dict[str, Any]:
    longest = max(sum(samples[i].num_tokens for i in row) for row in rows)
    return collate([[samples[i] for i in row] for row in rows], padded(longest))


@torch.no_grad()
def evaluate(
    chunks: Sequence[torch.nn.Module],
    batches: Iterable[dict[str, Any]],
    measure: Callable[[dict[str, Any], Tensor], Tensor],
    *,
    reward: bool,
) -> list[Tensor]:
    """What `measure` says of each batch and what the last stage makes of it, without gradients; [] on other stages.

    Every rank of a replica calls it with the same batches; they may differ in width.

    Args:
        chunks: this rank's part of the model, one for each virtual stage.
        batches: of `batches.collate`.
    """
    found: list[Tensor] = []
    training = [chunk.training for chunk in chunks]
    for chunk in chunks:
        chunk.eval()
    step, stages = get_forward_backward_func(), parallel_state.get_pipeline_model_parallel_world_size()
    try:
        for group in _together(batches, stages if len(chunks) > 1 else 1):
            rows, width = group[0]["tokens"].shape
            # Virtual stages take turns over as many micro batches as there are stages.
            padded = group if len(chunks) == 1 else group + group[-1:] * (stages - len(group))
            found += step(
                forward_step_func=_forward_only(measure, reward),
                data_iterator=[iter(padded) for _ in chunks],
                model=list(chunks),
                num_microbatches=len(padded),
                seq_length=width,
                micro_batch_size=rows,
                forward_only=True,
                collect_non_loss_data=True,
            )[: len(group)]
    finally:
        for chunk, was in zip(chunks, training):
            chunk.train(was)
    return found


def _together(batches: Iterable[dict[str, Any]], most: int) -> Iterator[list[dict[str, Any]]]:
    """Batches that follow each other and are of one shape, `most` at a time."""
    group: list[dict[str, Any]] = []
    for batch in batches:
        if group and (len(group) == most or batch["tokens"].shape != group[0]["tokens"].shape):
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


def _forward_only(measure: Callable[[dict[str, Any], Tensor], Tensor], reward: bool) -> Callable[..., Any]:
    def step(data: Any, model: torch.nn.Module) -> tuple[Tensor, Callable[..., Tensor]]:
        batch = to_device(next(data))
        output = forward(model, batch, reward=reward)
        return output, lambda output, non_loss_data=False: measure(batch, output)

    return step
