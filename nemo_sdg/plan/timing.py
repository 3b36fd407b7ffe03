"""How long forward passes, decode steps and training steps take, from a stated model of the machine.

A decode step reads the stage's weights once for all rows and each row's keys and values: it takes the longer of the bytes
over the bandwidth and the operations over the peak, and on top of it what launching takes (the roofline of Williams et al.,
CACM 2009). Passes over many tokens are operations over peak: 2 for each weight and token (Kaplan et al., arXiv 2001.08361),
and 4 for each query channel and key that it sees, half of them under a causal mask. A backward pass is twice its forward
pass. Tensor-parallel ranks add up hidden states twice a layer, by a ring. Pipeline stages are idle for (pp - 1) / (m v) of a
training step of m micro batches and v chunks (Narayanan et al., arXiv 2104.04473). Engine lanes keep all stages at work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nemo_sdg.checkpoints.tensors import ITEM_BYTES
from nemo_sdg.engine.budget import BLOCK
from nemo_sdg.engine.packing import SHARED
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.parallel.topology import Grid
from nemo_sdg.plan.machine import Machine
from nemo_sdg.plan.memory import StagePlan, stage_chunks

TOKEN_MESSAGES = 8
"""Over tensor-parallel ranks, when tokens are chosen, beside two a layer: of the embedding and the logits."""
SCORE_MESSAGES = 3
"""The same of a pass that scores: of the embedding and what is read behind it."""
MICRO_BATCH_MESSAGES = 4
"""The same of a micro batch that is trained on, beside four a layer: of the embedding and the loss."""
STEP_MESSAGES = 5
"""Of an optimizer step among all ranks, beside its gradients: losses, numbers of tokens, norms, and whether to stop."""


@dataclass(frozen=True)
class Laid:
    """A model on its ranks, on a machine."""

    shape: NemotronShape
    reward: bool
    grid: Grid
    dtype: str
    machine: Machine
    stages: list[StagePlan]

    @property
    def layers(self) -> list[int]:
        return [sum(map(len, chunks)) for chunks in stage_chunks(self.shape, self.grid)]

    @property
    def item(self) -> int:
        return ITEM_BYTES[self.dtype]

    def hidden_bytes(self, tokens: float) -> float:
        return tokens * self.shape.hidden_size * self.item

    def layer_flops(self, seen: float) -> float:
        """Of one token in one layer on one rank, in the forward pass.

        Args:
            seen: keys that its query meets.
        """
        shape = self.shape
        weights = shape.hidden_size * (shape.qkv_size + shape.query_size + 2 * shape.ffn_hidden_size)
        return (2 * weights + 4 * shape.query_size * seen) / self.grid.tp

    def head_flops(self) -> float:
        """Of one token in the output layer on one rank; a reward head is next to nothing."""
        return 0.0 if self.reward else 2 * self.shape.hidden_size * self.shape.padded_vocab_size(self.grid.tp) / self.grid.tp

    def adding_s(self, tokens: float) -> float:
        """Seconds in which a layer's results are added up over the tensor-parallel ranks, twice."""
        tp = self.grid.tp
        return 2 * self.machine.all_reduce_s(self.hidden_bytes(tokens), tp, tp)

    def messages_s(self, count: int) -> float:
        """Seconds of so many small messages among tensor-parallel ranks."""
        return count * self.machine.message_s if self.grid.tp > 1 else 0.0

    def sending_s(self, tokens: float) -> float:
        """Seconds in which hidden states go to the next stage."""
        if self.grid.pp == 1:
            return 0.0
        # Neighbouring stages lie tp x dp ranks apart.
        return self.machine.message_s + self.hidden_bytes(tokens) / self.machine.between(2 * self.grid.tp * self.grid.dp)


def pass_s(laid: Laid, tokens: float, pieces: float, seen: float, read: float, rows: float = 0) -> float:
    """Seconds that the slowest stage takes for a forward pass without gradients.

    Args:
        pieces: parts that attend by themselves.
        seen: keys that a query meets in the mean.
        read: tokens that go through the output layer.
        rows: for which a token is chosen; 0 in a pass that scores.
    """
    machine, worst = laid.machine, 0.0
    rate = machine.flops * machine.forward_efficiency
    for stage, layers in enumerate(laid.layers):
        each = machine.layer_s + pieces * machine.sequence_s + laid.adding_s(tokens) + tokens * laid.layer_flops(seen) / rate
        last = read * laid.head_flops() / rate + rows * machine.row_s + choosing_s(laid, rows)
        last += laid.messages_s(TOKEN_MESSAGES if rows else SCORE_MESSAGES)
        took = layers * each + (last if stage == laid.grid.pp - 1 else 0.0)
        worst = max(worst, took)
    return machine.pass_s + worst + laid.sending_s(tokens)


def choosing_s(laid: Laid, rows: float) -> float:
    """Seconds in which tokens are chosen from the logits of so many rows, beside `row_s`."""
    machine = laid.machine
    logits = 8 * rows * laid.shape.padded_vocab_size(laid.grid.tp) / laid.grid.tp
    return machine.sampling_passes * logits / (machine.bandwidth_bytes_s * machine.bandwidth_efficiency)


def decode_s(laid: Laid, rows: float, context: float) -> float:
    """Seconds that the slowest stage takes for a decode step of the rows of one lane.

    Args:
        context: keys that a row has in the mean.
    """
    machine, shape, worst = laid.machine, laid.shape, 0.0
    bandwidth = machine.bandwidth_bytes_s * machine.bandwidth_efficiency
    rate = machine.flops * machine.decode_efficiency
    keys = 2 * shape.num_query_groups * shape.kv_channels / laid.grid.tp * context * laid.item
    for stage, layers in enumerate(laid.layers):
        last = stage == laid.grid.pp - 1
        flops = rows * (layers * laid.layer_flops(context) + (laid.head_flops() if last else 0.0))
        work = max(laid.stages[stage].weights / bandwidth, flops / rate)
        work += machine.kv_passes * rows * layers * keys / bandwidth
        took = layers * (machine.decode_layer_s + laid.adding_s(rows)) + work
        took += rows * machine.row_s + (choosing_s(laid, rows) + laid.messages_s(TOKEN_MESSAGES) if last else 0.0)
        worst = max(worst, took)
    return machine.step_s + worst + laid.sending_s(rows)


@dataclass(frozen=True)
class Asked:
    """What a policy has to answer."""

    prompts: float
    samples: float
    """Responses to each prompt."""
    prompt_tokens: float
    response_tokens: float
    """In the mean."""
    most_tokens: float


def generate_s(laid: Laid, asked: Asked, slots: int, prefill_tokens: int) -> float:
    """Seconds of generation on all replicas."""
    grid = laid.grid
    prompts = asked.prompts / grid.dp
    responses = prompts * asked.samples
    lane_slots = -(-slots // grid.pp)
    # While rows remain the slots are full; at the end the longest ones run on alone. Rows of one length end together.
    steps = responses * asked.response_tokens / (grid.pp * lane_slots) + asked.most_tokens - asked.response_tokens
    if asked.most_tokens == asked.response_tokens:
        steps = math.ceil(responses / (grid.pp * lane_slots)) * asked.response_tokens
    # The first token of a response comes out of the prefill.
    steps *= max(asked.response_tokens - 1, 0) / asked.response_tokens
    decoding = steps * grid.pp * decode_s(laid, lane_slots, asked.prompt_tokens + asked.response_tokens / 2)
    pieces = max(1.0, asked.prompt_tokens / BLOCK)
    together = min(prefill_tokens / asked.prompt_tokens, max(1.0, lane_slots / asked.samples))
    passes = math.ceil(prompts / together)
    rows = min(together, prompts) * asked.samples
    each = pass_s(laid, prefill_tokens, min(together, prompts) * math.ceil(pieces), asked.prompt_tokens / 2, lane_slots, rows)
    return decoding + passes * each


def score_s(laid: Laid, asked: Asked, pack_tokens: int) -> float:
    """Seconds of scoring all responses on all replicas; what responses to one prompt share is computed once."""
    prompts = asked.prompts / laid.grid.dp
    shared = asked.samples > 1 and asked.prompt_tokens >= SHARED
    beginnings = prompts if shared else prompts * asked.samples
    tokens = beginnings * asked.prompt_tokens + prompts * asked.samples * asked.response_tokens
    passes = max(1, math.ceil(tokens / pack_tokens))
    pieces = prompts * (asked.samples + shared) / passes
    seen = (asked.prompt_tokens + asked.response_tokens) / 2
    # As many packs are under way as there are stages, so that the pipeline fills and empties once.
    return (passes + laid.grid.pp - 1) * pass_s(laid, tokens / passes, pieces, seen, 0)


def step_s(laid: Laid, *, rows: int, width: float, pieces: float, micro_batches: int, chunks: int) -> float:
    """Seconds of an optimizer step.

    Args:
        rows, width: of a micro batch, in tokens with their padding.
        pieces: sequences of a micro batch that attend by themselves; 0 where rows are not packed.
        chunks: virtual stages.
    """
    machine, grid, tokens = laid.machine, laid.grid, rows * width
    rate, worst = machine.flops * machine.train_efficiency, 0.0
    seen = width / max(1.0, pieces / rows) / 2
    for stage, layers in enumerate(laid.layers):
        flops = layers * laid.layer_flops(seen) + (laid.head_flops() if stage == grid.pp - 1 else 0.0)
        # A backward pass adds up gradients as often as its forward pass hidden states.
        each = machine.train_layer_s + 3 * pieces * machine.sequence_s + 2 * laid.adding_s(tokens)
        worst = max(worst, layers * each + 3 * tokens * flops / rate)
    each = machine.micro_batch_s + worst + 2 * laid.sending_s(tokens) + laid.messages_s(MICRO_BATCH_MESSAGES)
    pipeline = micro_batches * each * (1 + (grid.pp - 1) / (micro_batches * chunks))
    gradients = max(stage.gradients for stage in laid.stages)
    moved = max(2 * stage.weights + stage.gradients + 2 * stage.optimizer for stage in laid.stages)
    added = machine.all_reduce_s(gradients, grid.dp, grid.tp * grid.dp)
    added += step_messages_s(machine, grid.size)
    return pipeline + added + moved / (machine.bandwidth_bytes_s * machine.bandwidth_efficiency) + machine.train_step_s


def step_messages_s(machine: Machine, ranks: int) -> float:
    """Seconds of what all ranks of an optimizer step tell each other, beside gradients."""
    return STEP_MESSAGES * machine.message_s if ranks > 1 else 0.0
