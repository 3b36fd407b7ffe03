"""Batched generation with a KV cache, under any TP x PP, with the same `GPTModel` that trains.

All ranks of a replica run the same loop: they see the same tokens, so they agree without talking on which
slots are free. Axes: B slots, N rows of a prefill, S tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from nemo_sdg.engine.cache import KeyValueCache
from nemo_sdg.engine.pipeline import forward, gather_vocabulary
from nemo_sdg.engine.sampling import Sampling, choose
from nemo_sdg.errors import RowError
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel import device
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.parallel.random import row_uniforms


@dataclass(frozen=True)
class Request:
    """One response to be generated. The pair (prompt_id, sample) owns a random stream."""

    prompt_id: str
    sample: int
    prompt_ids: Sequence[int]


@dataclass(frozen=True)
class Generation:
    """One generated response, without the token that ended it."""

    token_ids: tuple[int, ...]
    finish_reason: str
    """stop: the model ended its turn; length: max_tokens; context: the model's context is full;
    not_finite: the logits were not finite, and the text must not be used."""


@dataclass
class _Row:
    index: int
    request: Request
    uniforms: np.ndarray
    tokens: list[int] = field(default_factory=list)


def check_fits(prompt_ids: Sequence[int], context: int) -> None:
    """Raises RowError for a prompt that leaves no room for an answer."""
    if not len(prompt_ids) or len(prompt_ids) >= context:
        raise RowError(
            "the prompt is longer than the context" if len(prompt_ids) else "the prompt has no tokens",
            found=f"{len(prompt_ids)} tokens",
            expected=f"1 to {context - 1}",
            way_out="shorten it",
        )


@torch.no_grad()
def generate(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    mesh: Mesh,
    requests: Sequence[Request],
    sampling: Sampling,
    slots: int,
    on_finished: Callable[[int], None] | None = None,
) -> list[Generation]:
    """The responses to `requests`, in their order, on every rank of the replica.

    Args:
        slots: rows decoded at once; a finished row's slot takes the next request.
        on_finished: called with the number of rows that have just ended.
    Raises:
        RowError: a prompt does not fit the model's context.
    """
    for request in requests:
        check_fits(request.prompt_ids, model.max_sequence_length)
    if not requests:
        return []
    return _Decoder(model, tokenizer, mesh, requests, sampling, slots, on_finished).run()


class _Decoder:
    """The state of one call of `generate`."""

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Tokenizer,
        mesh: Mesh,
        requests: Sequence[Request],
        sampling: Sampling,
        slots: int,
        on_finished: Callable[[int], None] | None,
    ) -> None:
        self.model, self.mesh, self.sampling, self.on_finished = model, mesh, sampling, on_finished
        self.stop_ids = frozenset(tokenizer.stop_ids)
        self.pad_id = tokenizer.eos_id
        longest = max(len(request.prompt_ids) for request in requests)
        self.context = model.max_sequence_length
        self.cache = KeyValueCache(model, slots, min(self.context, longest + sampling.max_tokens))
        self.waiting = deque(enumerate(requests))
        self.rows: list[_Row | None] = [None] * slots
        self.next_ids = [self.pad_id] * slots
        self.done: dict[int, Generation] = {}

    def run(self) -> list[Generation]:
        total = len(self.waiting)
        while len(self.done) < total:
            free = [slot for slot, row in enumerate(self.rows) if row is None]
            # A prefill for each single slot would cost more than it saves: wait until a quarter is free.
            if self.waiting and len(free) * 4 >= len(self.rows):
                self._prefill(free)
            else:
                self._decode()
        return [self.done[index] for index in range(total)]

    def _prefill(self, free: list[int]) -> None:
        slots = free[: len(self.waiting)]
        settings = self.sampling
        for slot in slots:
            index, request = self.waiting.popleft()
            stream = row_uniforms(settings.seed, request.prompt_id, request.sample, settings.max_tokens, settings.round)
            self.rows[slot] = _Row(index, request, stream)
        prompts = [self.rows[slot].request.prompt_ids for slot in slots]
        lengths = [len(prompt) for prompt in prompts]
        ids_NS = np.full((len(slots), max(lengths)), self.pad_id, dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids_NS[row, : len(prompt)] = prompt
        self.cache.begin_prefill(slots, lengths)
        self._step(torch.from_numpy(ids_NS), slots)

    def _decode(self) -> None:
        self.cache.begin_decode()
        self._step(torch.tensor(self.next_ids)[:, None], list(range(len(self.rows))))
        self.cache.end_decode()

    def _step(self, ids: Tensor, slots: list[int]) -> None:
        """Run the model on the rows of these slots and give each of them its next token."""
        logits = forward(self.model, self.mesh, ids.to(device.device()), inference_context=self.cache)
        # Token -1 stands for logits that are not finite.
        tokens_B = torch.empty(len(slots), dtype=torch.long, device=device.device())
        if logits is not None:
            logits_BV = gather_vocabulary(logits[:, 0], self.mesh, self.model.vocab_size)
            uniforms = [0.0 if (row := self.rows[slot]) is None else row.uniforms[len(row.tokens)] for slot in slots]
            uniform_B = torch.tensor(uniforms, dtype=torch.float64, device=logits_BV.device)
            finite_B = logits_BV.isfinite().all(dim=-1)
            safe_BV = logits_BV if bool(finite_B.all()) else logits_BV.nan_to_num()
            tokens_B.copy_(torch.where(finite_B, choose(safe_BV, uniform_B, self.sampling), -1))
            # On a GPU a cumulative sum is not deterministic; shards that part ways would wait for each other.
            self.mesh.broadcast_from_first_shard(tokens_B)
        self.mesh.broadcast_from_last_stage(tokens_B)
        finished = 0
        for slot, token in zip(slots, tokens_B.tolist()):
            if self.rows[slot] is not None:
                finished += self._take(slot, token)
        if finished and self.on_finished:
            self.on_finished(finished)

    def _take(self, slot: int, token: int) -> bool:
        """Append a token to the row of a slot; True if that ends the row."""
        row = self.rows[slot]
        if token in self.stop_ids or token < 0:
            reason = "stop" if token >= 0 else "not_finite"
        else:
            row.tokens.append(token)
            self.next_ids[slot] = token
            if len(row.tokens) == self.sampling.max_tokens:
                reason = "length"
            elif len(row.request.prompt_ids) + len(row.tokens) >= self.context:
                reason = "context"
            else:
                return False
        self.cache.free(slot, wipe=reason == "not_finite")
        self.done[row.index] = Generation(tuple(row.tokens), reason)
        self.rows[slot] = None
        self.next_ids[slot] = self.pad_id
        return True
