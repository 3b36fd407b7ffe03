"""What a loaded model allows: its context, its memory for keys and values, its part of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nemo_sdg.engine.budget import Budget, make_budget
from nemo_sdg.engine.sampling import Shard
from nemo_sdg.errors import RowError
from nemo_sdg.models.stages import stage_layers
from nemo_sdg.parallel.mesh import Mesh


def vocabulary_shard(model: torch.nn.Module, mesh: Mesh) -> Shard:
    """Which logits the last stage's ranks hold."""
    size = -(-model.vocab_size // mesh.tp)
    return Shard(size * mesh.tp_rank, model.num_padding, mesh.tp, mesh.tp_group if mesh.tp > 1 else None)


def model_budget(
    model: torch.nn.Module, mesh: Mesh, slots: int, prefill_tokens: int, kv_cache_bytes: int | None
) -> Budget:
    """The budget of a model that is loaded."""
    config = model.config
    stages = stage_layers(
        config.num_layers, mesh.pp, first=mesh.first_stage_layers, last=mesh.last_stage_layers
    )
    return make_budget(
        groups=config.num_query_groups // mesh.tp,
        channels=config.kv_channels,
        context=model.max_sequence_length,
        stage_layers=[len(chunks[0]) for chunks in stages],
        item_bytes=config.params_dtype.itemsize,
        slots=slots,
        prefill_tokens=prefill_tokens,
        kv_cache_bytes=kv_cache_bytes,
    )


def check_fits(prompt_ids: Sequence[int], context: int) -> None:
    """Raises RowError for a prompt that leaves no room for an answer."""
    if not len(prompt_ids) or len(prompt_ids) >= context:
        raise RowError(
            "the prompt is longer than the context" if len(prompt_ids) else "the prompt has no tokens",
            found=f"{len(prompt_ids)} tokens",
            expected=f"1 to {context - 1}",
            way_out="shorten it",
        )
