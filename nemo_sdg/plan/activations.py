"""What a backward pass needs and a forward pass therefore keeps, in bytes, on one rank.

Korthikanti et al. (arXiv 2205.05198) count 34 s b h + 5 a s^2 b bytes for a layer of GPT-3. This model's differ: no dropout
masks, squared ReLU without a gate, fewer keys and values than queries, attention that keeps no scores, norms in fp32.
What is kept of n tokens (E hidden, F FFN, Q query, K key and value channels, A heads, R rotary channels, V vocabulary;
w bytes of a number, u = max(4, w) of one in a norm or a softmax; t tensor-parallel ranks, s = t under sequence parallelism,
else 1):

    each layer    2 u E/s       the inputs of both norms: the residual stream, wider in half precision
                  2 w E/s       their outputs: the inputs of linear_qkv and linear_fc1
                  4 u/s         mean and deviation of both norms
                  w (Q + 2 K)/t what linear_qkv has made, for the values in it
                  w (Q + K)/t   rotated queries and keys
                  w Q/t         what attention has made: the input of linear_proj; twice where rows are packed
                  4 A/t         log of the sum of exponentials of each query
                  2 w R         cosines and sines, of the positions of one row; of each token where rows are packed
                  2 w F/t       relu(x), and its square: the input of linear_fc2
    first stage   8             token ids; 1 more for those of other shards, where t > 1
    last stage    (u + w) E/s + 2 u/s    the final norm and the input of the output layer, or of the reward head
                  u V/t + 10    softmax over the vocabulary, and which token is the label; not of a reward model

Each number is one that autograd is seen to save on a CPU (torch.autograd.graph.saved_tensors_hooks, storages counted once,
parameters left out). Fused attention of a GPU keeps the same: queries, keys, values, output and the log-sum. On a GPU there is none for fp64, nor
for fp32 with fewer keys than queries: the plain one keeps w A S/t scores of each token, S being the width of its row, and
keys and values repeated for each query, 2 w (Q - K)/t more. TransformerEngine
(models.spec=te) keeps the inputs of its norms as they come, w in place of u. Low-rank adapters add their inner activations;
that frozen linears then keep less is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_sdg.checkpoints.tensors import ITEM_BYTES
from nemo_sdg.config import Training
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.training.widths import padded


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once."""

    rows: int
    width: int
    """Tokens of a row, with its padding."""
    packed: bool
    """Several sequences share a row, each seeing itself alone."""

    @property
    def tokens(self) -> int:
        return self.rows * self.width

    @classmethod
    def of(cls, settings: Training, pairs: bool, context: int) -> MicroBatch:
        """The largest one that a fit of these settings may have.

        Args:
            pairs: a sample is two sequences.
            context: tokens of a sequence that the model takes.
        """
        longest = (2 if pairs else 1) * min(settings.max_length, context)
        packed = settings.packed_sequence_size
        return cls(settings.micro_batch_size, padded(max(longest, packed or 0)), pairs or packed is not None)


@dataclass(frozen=True)
class Slice:
    """The part of a model that one rank has, and in which numbers."""

    shape: NemotronShape
    dtype: str
    tp: int = 1
    sequence_parallel: bool = False
    reward: bool = False
    te: bool = False
    """The layers are TransformerEngine's."""
    math: bool = False
    """Attention falls to the kernel that keeps its scores."""
    adapters: int = 0
    """Ranks of all low-rank adapters of a layer together."""

    @property
    def item(self) -> int:
        return ITEM_BYTES[self.dtype]

    @property
    def wide(self) -> int:
        return max(4, self.item)


def layer_bytes(part: Slice, batch: MicroBatch) -> float:
    """What one layer keeps of a micro batch."""
    shape, w, n = part.shape, part.item, batch.tokens
    stream = shape.hidden_size / (part.tp if part.sequence_parallel else 1)
    kept_stream = 2 * (w if part.te else part.wide) + 2 * w
    statistics = 4 * part.wide / (part.tp if part.sequence_parallel else 1)
    keys = shape.num_query_groups * shape.kv_channels
    attention = w * ((4 if batch.packed else 3) * shape.query_size + 3 * keys) + 4 * shape.num_attention_heads
    if part.math:
        attention += w * (shape.num_attention_heads * batch.width + 2 * (shape.query_size - keys))
    rotary = 2 * w * int(shape.kv_channels * shape.rotary_percent)
    rotated = n if batch.packed else batch.width
    mlp = 2 * w * shape.ffn_hidden_size
    per_token = kept_stream * stream + statistics + (attention + mlp) / part.tp + w * part.adapters
    return n * per_token + rotated * rotary


def first_bytes(part: Slice, batch: MicroBatch) -> float:
    """What the embedding keeps."""
    return batch.tokens * (9 if part.tp > 1 else 8)


def last_bytes(part: Slice, batch: MicroBatch) -> float:
    """What the final norm, the output layer and the loss keep; of a reward model what its head does."""
    shards = part.tp if part.sequence_parallel else 1
    norm = ((part.wide + part.item) * part.shape.hidden_size + 2 * part.wide) / shards
    if part.reward:
        # The head reads the last tokens alone; what of it is kept is as small as they are few.
        return batch.tokens * ((part.wide * part.shape.hidden_size + 2 * part.wide) / shards)
    vocabulary = part.wide * part.shape.padded_vocab_size(part.tp) / part.tp
    return batch.tokens * (norm + vocabulary + 10)


def under_way(pp: int, stage: int, micro_batches: int, chunks: int = 1) -> int:
    """Forward passes of chunks whose backward pass is still to come, on a rank of a stage, at most.

    One forward, one backward (Narayanan et al., arXiv 2104.04473): the first stage is as many micro batches ahead as
    there are stages behind it. With chunks, interleaved, as NVIDIA/Megatron-LM core_v0.15.3 has it: schedules.py
    `get_pp_rank_microbatches`.
    """
    if pp == 1:
        return 1
    if chunks == 1:
        return min(pp - stage, micro_batches)
    return min((pp - stage - 1) * 2 + (chunks - 1) * pp + 1, micro_batches * chunks)


def stage_bytes(
    part: Slice, batch: MicroBatch, *, layers: int, pp: int, stage: int, micro_batches: int, chunks: int = 1
) -> int:
    """What a rank of a pipeline stage keeps at most.

    Args:
        layers: of the stage, in all its chunks.
        micro_batches: of one replica in a step.
    """
    passes = under_way(pp, stage, micro_batches, chunks)
    total = passes * layers / chunks * layer_bytes(part, batch)
    if stage == 0:  # of interleaved chunks the first one alone has the embedding, and every pp-th turn is its
        total += min(passes, micro_batches if chunks == 1 else 2 * pp) * first_bytes(part, batch)
    if stage == pp - 1:  # the loss is followed by its backward pass at once
        total += last_bytes(part, batch)
    return round(total)


def between_bytes(
    part: Slice, batch: MicroBatch, *, pp: int, stage: int, micro_batches: int, chunks: int, gpu: bool
) -> int:
    """Hidden states that came from the stage before and that went to the next one, which a schedule keeps until the
    backward pass. Those that came are the first norm's input in fp32 and wider, and counted there; on a GPU Megatron
    frees those that went."""
    if pp == 1:
        return 0
    shards = part.tp if part.sequence_parallel else 1
    state = batch.tokens * part.shape.hidden_size * part.item / shards
    came = (stage > 0 or chunks > 1) and part.item < part.wide and not part.te
    went = (stage < pp - 1 or chunks > 1) and not gpu
    return round(under_way(pp, stage, micro_batches, chunks) * state * (came + went))
