"""Rewards of conversations, and log-probabilities of responses, in packed forward passes under any TP x PP.

Nothing is padded, and what several conversations of a pack begin with is computed once. Axes: S tokens of a pack, R rows that
are read, A outputs, E hidden size, H query heads, G KV groups, D head channels, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from typing import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nemo_sdg.engine.cache import Step
from nemo_sdg.engine.fitting import vocabulary_shard
from nemo_sdg.engine.packing import Pack, Segment, pack
from nemo_sdg.engine.pipeline import Pipeline
from nemo_sdg.engine.sampling import log_probs
from nemo_sdg.errors import RowError
from nemo_sdg.models.attention import attend
from nemo_sdg.models.shapes import NUM_REWARD_OUTPUTS
from nemo_sdg.models.templates import reward_prompt
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel.mesh import Mesh

Conversation = Sequence[Mapping[str, str]]
_MULTIPLE = 16
"""Tokens of a pass are a multiple of it: a matrix product rounds the last rows of an odd number otherwise."""


def encode(tokenizer: Tokenizer, conversation: Conversation, context: int) -> list[int]:
    """Token ids of a conversation as the reward model reads it.

    Raises:
        RowError: the templates cannot express it, or it is longer than the context; cutting it would remove
            the token at which the reward is read.
    """
    ids = tokenizer.encode(reward_prompt(conversation))
    if len(ids) > context:
        raise RowError(
            "the conversation is longer than the context", found=f"{len(ids)} tokens", expected=f"at most {context}",
            way_out="shorten it",
        )  # fmt: skip
    return ids


class PackStep(Step):
    """Whole conversations: each segment attends to those that it continues, and to itself."""

    def __init__(self, model: torch.nn.Module, made: Pack, size: int, places: np.ndarray) -> None:
        """
        Args:
            places: tokens that go through the output layer or the reward head.
        """
        positions_S = np.zeros(size, dtype=np.int64)
        for segment in made.segments:
            positions_S[_slice(segment)] = np.arange(segment.start, segment.start + segment.count)
        super().__init__(model, positions_S)
        self._segments = made.segments
        self._places = torch.from_numpy(places).to(self.cos_S11R.device)

    def attend(self, layer: int, query_SBHD: Tensor, key_SBGD: Tensor, value_SBGD: Tensor) -> Tensor:
        query_BHSD, key_BGSD, value_BGSD = (x.permute(1, 2, 0, 3) for x in (query_SBHD, key_SBGD, value_SBGD))
        context_SBHD = torch.zeros_like(query_SBHD)
        for segment in self._segments:
            here = _slice(segment)
            chain = self._chain(segment)
            keys, values = key_BGSD[:, :, here], value_BGSD[:, :, here]
            visible = None
            if len(chain) > 1:
                keys = torch.cat([key_BGSD[:, :, part] for part in chain], dim=2)
                values = torch.cat([value_BGSD[:, :, part] for part in chain], dim=2)
                shape = (segment.count, segment.start + segment.count)
                visible = torch.ones(shape, dtype=torch.bool, device=keys.device).tril(segment.start)[None, None]
            made_BHSD = attend(query_BHSD[:, :, here], keys, values, visible)
            context_SBHD[here] = made_BHSD.permute(2, 0, 1, 3)
        return context_SBHD

    def _chain(self, segment: Segment) -> list[slice]:
        chain = [_slice(segment)]
        while segment.parent >= 0:
            segment = self._segments[segment.parent]
            chain.append(_slice(segment))
        return chain[::-1]

    def select(self, hidden_SBE: Tensor) -> Tensor:
        return hidden_SBE[self._places]

    def is_decode_only(self) -> bool:
        return False


def _slice(segment: Segment) -> slice:
    return slice(segment.offset, segment.offset + segment.count)


@torch.no_grad()
def score(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    mesh: Mesh,
    conversations: Sequence[Sequence[int]],
    pack_tokens: int = 4096,
    on_finished: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Rewards float32 [rows, A] of encoded conversations, in their order, on every rank of the replica.

    Args:
        pack_tokens: tokens of a forward pass at most; a longer conversation goes alone.
        on_finished: called with the number of rows of each pass.
    """
    rewards_RA = np.empty((len(conversations), NUM_REWARD_OUTPUTS), dtype=np.float32)

    def place(made: Pack) -> np.ndarray:
        return np.array([made.places(leaf)[-1] for _, leaf in made.leaves])

    def read(output_1RA: Tensor, made: Pack) -> Tensor:
        return output_1RA[0].double()

    for made, values in _run(model, mesh, pack(conversations, pack_tokens), place, read, NUM_REWARD_OUTPUTS):
        rewards_RA[[index for index, _ in made.leaves]] = values
        if on_finished:
            on_finished(len(made.leaves))
    return rewards_RA


@torch.no_grad()
def response_log_probs(
    model: torch.nn.Module,
    mesh: Mesh,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    pack_tokens: int = 4096,
    on_finished: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """Natural log-probability of each token of given responses under a language model, float64 [tokens] per row.

    Args:
        rows: (prompt ids, response ids); neither may be empty.
    """
    shard = vocabulary_shard(model, mesh)
    whole = [[*prompt, *response] for prompt, response in rows]

    def spans(made: Pack) -> list[np.ndarray]:
        """Where each response token is predicted: one place before its own."""
        return [made.places(leaf)[len(rows[index][0]) - 1 : -1] for index, leaf in made.leaves]

    def place(made: Pack) -> np.ndarray:
        return np.concatenate(spans(made))

    def read(logits_1RV: Tensor, made: Pack) -> Tensor:
        target = [token for index, _ in made.leaves for token in rows[index][1]]
        return log_probs(logits_1RV[0], torch.tensor(target, device=logits_1RV.device), shard)[:, None]

    found: dict[int, np.ndarray] = {}
    for made, values in _run(model, mesh, pack(whole, pack_tokens), place, read, 1):
        ends = np.cumsum([len(rows[index][1]) for index, _ in made.leaves])
        for (index, _), part in zip(made.leaves, np.split(values[:, 0], ends[:-1])):
            found[index] = part
        if on_finished:
            on_finished(len(made.leaves))
    return [found[index] for index in range(len(rows))]


def _run(
    model: torch.nn.Module,
    mesh: Mesh,
    packs: Iterable[Pack],
    place: Callable[[Pack], np.ndarray],
    read: Callable[[Tensor, Pack], Tensor],
    width: int,
) -> Iterator[tuple[Pack, np.ndarray]]:
    """Each pack with what was read of it, on every rank; as many packs are under way as there are stages.

    Args:
        place: the tokens of a pack that are read.
        read: (what the last stage computes for them, the pack) -> what all ranks learn, float64 [R, width].
    """
    pipeline = Pipeline(model, mesh, tag=1)
    under_way: deque[tuple[Pack, int, Tensor | None]] = deque()

    def settle() -> tuple[Pack, np.ndarray]:
        made, count, result = under_way.popleft()
        if result is None:
            result = pipeline.hear(torch.empty((count, width), dtype=torch.float64))
        return made, result.numpy()

    for made in packs:
        places = place(made)
        size = -(-len(made.token_ids) // _MULTIPLE) * _MULTIPLE
        output = pipeline.forward(made.token_ids, size, PackStep(model, made, size, places))
        result = None
        if output is not None:
            result = mesh.broadcast_from_first_shard(read(output, made)).cpu()
            pipeline.tell(result)
        under_way.append((made, len(places), result))
        if len(under_way) == mesh.pp:
            yield settle()
    while under_way:
        yield settle()
    pipeline.drain()


def named(rewards_A: np.ndarray, outputs: Mapping[str, int]) -> dict[str, float]:
    """The rewards of one row by name, neither clamped nor rounded, in shortest decimal of float32.

    The shortest decimal hides last digits that differ between topologies in fp64.
    """
    return {name: float(str(rewards_A[slot])) for name, slot in outputs.items()}
