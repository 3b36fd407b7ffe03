"""The least time that a run could take on this machine: its matrix products and its attention, and nothing else.

    decode  = decode steps x products(slots rows) + decoded rows / slots x attention(slots rows, mean keys)
    prefill = prompt tokens / chunk x products(chunk rows, no output) + prompts x causal attention(mean prompt)

* `products` are the weight matrices of all layers and the output (qkv, proj, fc1, fc2, output; every layer has its own
  memory, as in the model), each in one call on contiguous fp32 rows, without bias.
* `attention` is the better of `scaled_dot_product_attention` and two `bmm` with a softmax, over contiguous keys and
  values per row, all of the mean length, without a mask.
* Decode steps, decoded rows and prompt tokens are what the engine counted; `mean keys` is the mean over all decoded
  rows of the workload. So a step with empty slots pays its products in full and its attention in part.
* What empty slots at the end of a run cost is therefore in this floor. `full_slots` is the rate of decode steps whose
  slots are all taken, which no engine reaches whose last rows end alone.
* Not in it: embedding, norms, squared ReLU, rotary angles, writing keys, choosing tokens, Python.
"""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass
from typing import Callable

import torch
from benchmarks.measuring import timed
from benchmarks.workload import Job
from torch.nn.functional import linear, scaled_dot_product_attention

from nemo_sdg.models.shapes import NemotronShape

REPEATS = 7
CHUNK = 512
"""Prompt tokens of one prefill, which is the setting generate.prefill_tokens."""


def mean_keys(jobs: list[Job]) -> float:
    """Keys that a decoded row looks at, its own among them, in the mean over all rows of all decode steps.

    The first token of a response comes from the prefill; the decode step that makes token j has j - 1 before it.
    """
    keys = sum((job.length - 1) * (len(job.prompt_ids) + job.length / 2) for job in jobs)
    return keys / sum(job.length - 1 for job in jobs)


@dataclass(frozen=True)
class Floor:
    """Seconds of the parts, each the median of a few calls."""

    slots: int
    decode_products: float
    decode_attention: float
    chunk_products: float
    prompt_attention: float

    @classmethod
    def measure(cls, shape: NemotronShape, jobs: list[Job], slots: int) -> "Floor":
        prompt = round(statistics.mean(len(job.prompt_ids) for job in jobs))
        return cls(
            slots,
            _seconds(_products(shape, slots, output=True)),
            min(map(_seconds, _decode_attention(shape, slots, round(mean_keys(jobs))))),
            _seconds(_products(shape, CHUNK, output=False)),
            _seconds(_causal_attention(shape, prompt)),
        )

    def seconds(self, prompts: int, *, decode_steps: int, decode_rows: int, prefill_tokens: int) -> float:
        """Of a run of the engine, by the formula above."""
        decode = decode_steps * self.decode_products + decode_rows / self.slots * self.decode_attention
        return decode + prefill_tokens / CHUNK * self.chunk_products + prompts * self.prompt_attention

    @property
    def full_slots(self) -> float:
        """Tokens per second of decode steps whose slots are all taken."""
        return self.slots / (self.decode_products + self.decode_attention)


@functools.cache
def _weights(shape: NemotronShape) -> list[torch.Tensor]:
    hidden, ffn = shape.hidden_size, shape.ffn_hidden_size
    sizes = [(shape.qkv_size, hidden), (hidden, shape.query_size), (ffn, hidden), (hidden, ffn)] * shape.num_layers
    return [torch.randn(*size) for size in [*sizes, (shape.vocab_size, hidden)]]


def _products(shape: NemotronShape, rows: int, *, output: bool) -> Callable[[], None]:
    weights = _weights(shape)[: None if output else -1]
    inputs = {width: torch.randn(rows, width) for width in {weight.size(1) for weight in weights}}

    def run() -> None:
        for weight in weights:
            linear(inputs[weight.size(1)], weight)

    return run


def _decode_attention(shape: NemotronShape, rows: int, keys: int) -> list[Callable[[], None]]:
    groups, channels = shape.num_query_groups, shape.kv_channels
    query_BGMD = torch.randn(rows, groups, shape.num_attention_heads // groups, channels)
    # Every layer has keys and values of its own: only so do they come from memory as they do in the model.
    layers = [torch.randn(2, rows, groups, keys, channels).unbind() for _ in range(shape.num_layers)]

    def fused() -> None:
        for key_BGTD, value_BGTD in layers:
            scaled_dot_product_attention(query_BGMD, key_BGTD, value_BGTD)

    def plain() -> None:
        for key_BGTD, value_BGTD in layers:
            weights_NMT = torch.bmm(query_BGMD.flatten(0, 1), key_BGTD.flatten(0, 1).transpose(1, 2))
            torch.bmm(weights_NMT.softmax(-1), value_BGTD.flatten(0, 1))

    return [fused, plain]


def _causal_attention(shape: NemotronShape, length: int) -> Callable[[], None]:
    groups = shape.num_attention_heads // shape.num_query_groups
    query_BHSD = torch.randn(1, shape.num_attention_heads, length, shape.kv_channels)
    layers = [
        torch.randn(2, 1, shape.num_query_groups, length, shape.kv_channels).unbind() for _ in range(shape.num_layers)
    ]

    def run() -> None:
        for key_BGTD, value_BGTD in layers:
            scaled_dot_product_attention(query_BHSD, key_BGTD, value_BGTD, is_causal=True, enable_gqa=groups > 1)

    return run


def _seconds(work: Callable[[], None]) -> float:
    work()
    return statistics.median(timed(work)[0] for _ in range(REPEATS))
