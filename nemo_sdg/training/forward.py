"""Forward passes over batches of samples: one micro batch within a step, or many without gradients.

Axes: B rows, S tokens, V vocabulary (`_local`: this tensor-parallel rank's), N sequences, A reward outputs.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterable, Iterator, Sequence

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from nemo_sdg.models.attention import Segments
from nemo_sdg.parallel import device


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
