"""What a forward or backward pass holds for a moment, in bytes, on one rank, beside what it keeps for later.

Estimates: of passes larger than what lives at one time, for tensors are counted that PyTorch may free one after the other;
of backward passes held against the resident memory of fits on CPUs (tests/benchmarks/test_plan.py), within a tenth.
"""

from __future__ import annotations

from nemo_sdg.checkpoints.reading import BLOCK_BYTES
from nemo_sdg.config import Hardware
from nemo_sdg.plan.activations import MicroBatch, Slice
from nemo_sdg.plan.machine import CPU, presets

READERS = 8
"""Threads that read a checkpoint at most (`checkpoints.reading.default_threads`)."""


def pass_bytes(part: Slice, tokens: int) -> int:
    """A layer without gradients: its stream and norms, projections, attention and MLP of so many tokens."""
    shape = part.shape
    heads = 3 * shape.query_size + 2 * shape.num_query_groups * shape.kv_channels
    width = shape.hidden_size * (2 * part.wide + 2 * part.item) + part.item * (heads + 2 * shape.ffn_hidden_size) / part.tp
    return round(tokens * width)


def choosing_bytes(part: Slice, rows: int) -> int:
    """Logits of so many rows as the model has them, and three times in fp64, as choosing tokens does."""
    return round(rows * part.shape.padded_vocab_size(part.tp) / part.tp * (part.item + 24))


def scores_bytes(part: Slice, rows: int, context: int) -> int:
    """Attention of a decode step: scores by block, brought together, and their softmax, in fp32 and wider."""
    return round(3 * part.wide * rows * part.shape.num_attention_heads / part.tp * context)


def backward_bytes(part: Slice, batch: MicroBatch, *, last: bool) -> int:
    """The widest moment of a backward pass: of the loss a gradient of the logits, beside what is kept of them; of a layer
    those of its MLP."""
    shape = part.shape
    mlp = 3 * part.item * shape.ffn_hidden_size / part.tp
    loss = 0.0
    if last and not part.reward:
        loss = part.wide * shape.padded_vocab_size(part.tp) / part.tp
    return round(batch.tokens * (max(mlp, loss) + 2 * part.wide * shape.hidden_size))


def fragments(settings: Hardware, gpu: bool) -> float:
    """The share of activations and buffers that the allocator takes besides (`hardware.fragments`)."""
    if settings.fragments is not None:
        return settings.fragments
    known = presets()
    return known["defaults" if gpu else CPU]["fragments"]


def loading_bytes(weights: int, same_dtype: bool, gpu: bool) -> int:
    """What reading a checkpoint holds beside the weights: nothing where the file's numbers go where they belong, else a
    block for each thread."""
    return 0 if same_dtype and not gpu else min(weights, READERS * BLOCK_BYTES)
