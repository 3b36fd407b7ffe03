"""Continuous batching with the same `GPTModel` that trains, under any TP x PP.

All ranks of a replica run the same loop: they see the same tokens, so they agree without talking on what comes next.
Axes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Callable

import numpy as np
import torch
from torch import Tensor

from nemo_sdg.engine.blocks import block_names
from nemo_sdg.engine.budget import BLOCK, FOURS, blocks_of
from nemo_sdg.engine.cache import DecodeStep, KeyValueCache, PrefillStep, copy_blocks
from nemo_sdg.engine.ending import Ending
from nemo_sdg.engine.fitting import check_fits, model_budget, vocabulary_shard
from nemo_sdg.engine.jobs import Decode, Group, Job, Row, Stats
from nemo_sdg.engine.pipeline import Pipeline
from nemo_sdg.engine.requests import Generation, Request, Sampling
from nemo_sdg.engine.sampling import Choice, choose
from nemo_sdg.engine.scheduler import Scheduler
from nemo_sdg.errors import RowError
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.parallel.random import row_uniforms

__all__ = ["Engine", "Event", "Generation", "Request", "generate"]


@dataclass(frozen=True)
class Event:
    """News of one response."""

    ticket: int
    token_ids: tuple[int, ...]
    """New since the last event. A stop text that comes may take the last of them back: `generation` says what stays."""
    generation: Generation | None = None
    """The whole response, once it is finished."""


class Engine:
    """Responses to requests that may come at any time.

    Every rank of the replica makes the same calls in the same order. What a response is depends on its request alone:
    at a fixed dtype, TP x PP and shape (slots, prefill_tokens) it is bit-equal whatever else is under way. Shown on CPUs.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Tokenizer,
        mesh: Mesh,
        *,
        slots: int,
        prefill_tokens: int = 512,
        kv_cache_bytes: int | None = None,
        fixed_shape: bool = True,
    ) -> None:
        """
        Args:
            slots: rows decoded at once.
            prefill_tokens: prompt tokens of one forward pass; a multiple of 64.
            kv_cache_bytes: keys and values that this rank may hold; None is enough for `slots` rows as long as the context.
            fixed_shape: always run all slots and all prefill_tokens; otherwise fewer when few are left.
        """
        assert prefill_tokens >= BLOCK and prefill_tokens % BLOCK == 0, "prompts go in by blocks"
        self.model, self.mesh, self.tokenizer = model, mesh, tokenizer
        self.context = model.max_sequence_length
        self.budget = model_budget(model, mesh, slots, prefill_tokens, kv_cache_bytes)
        self.caches = [
            KeyValueCache(model, self.budget.blocks + self.budget.store) for _ in range(self.budget.lanes)
        ]
        self._scheduler = Scheduler(self.budget, prefill_tokens=prefill_tokens, fixed_shape=fixed_shape)
        self._pipeline, self._ending = Pipeline(model, mesh), Ending(tokenizer, self.context)
        self._shard = vocabulary_shard(model, mesh)
        self._under_way: deque[tuple[Job, Tensor | None]] = deque()
        self._rows: dict[int, Row] = {}
        self._tickets = 0
        self._rests = True

    @property
    def stats(self) -> Stats:
        return self._scheduler.stats

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return self._scheduler.idle and not self._under_way

    @property
    def room(self) -> bool:
        """Whether more requests should come in, so that no slot has to wait for one."""
        return len(self._rows) < 4 * self.budget.lanes * self.budget.slots

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that this rank holds."""
        return sum(cache.nbytes for cache in self.caches)

    def check(self, request: Request) -> None:
        """Raises RowError for a request that could never be answered here."""
        check_fits(request.prompt_ids, self.context)
        limit = self._limit(request, request.sampling)
        if blocks_of(limit) > self.budget.blocks:
            raise RowError(
                "the prompt and its response do not fit the bytes for keys and values", found=f"{limit} tokens",
                expected=f"{self.budget.blocks * BLOCK} at most", way_out="raise generate.kv_cache_bytes",
            )  # fmt: skip

    def submit(self, request: Request) -> int:
        """Takes a request with its own sampling; returns its ticket, counted from 0.

        Requests of one prompt that follow one another share the prompt, up to `request.samples` of them.

        Raises:
            RowError: see `check`.
        """
        self.check(request)
        settings = request.sampling
        assert settings is not None
        ticket, self._tickets = self._tickets, self._tickets + 1
        stream = row_uniforms(settings.seed, request.prompt_id, request.sample, settings.max_tokens, settings.round)
        row = self._rows[ticket] = Row(ticket, request, settings, self._limit(request, settings), stream)
        group = self._open_group(row)
        if group is None:
            self._scheduler.add(Group([row], request.samples, block_names(request.prompt_ids)))
        else:
            group.rows.append(row)
            group.alive += 1
            row.group = group
        return ticket

    def cancel(self, ticket: int) -> None:
        """Nobody wants this response any more; no further event tells of it."""
        if ticket in self._rows:
            self._scheduler.cancel(self._rows.pop(ticket))

    def step(self) -> list[Event]:
        """One turn of the pipeline: a forward pass goes in, and what comes out of an earlier one becomes events.

        With one stage that is the same pass.
        """
        events: list[Event] = []
        self.stats.runs += self._rests and not self.idle
        if len(self._under_way) == self.mesh.pp:
            events += self._settle()
        job = self._scheduler.next_job()
        if job is not None:
            self._under_way.append((job, self._forward(job)))
        elif self._under_way:
            self.stats.ticks += 1
            self.stats.bubbles += 1
            events += self._settle()
        if self.mesh.pp == 1 and self._under_way:
            events += self._settle()
        self._rests = self.idle
        if self._rests:
            self._pipeline.drain()
        return events

    def _limit(self, request: Request, settings: Sampling | None) -> int:
        most = settings.max_tokens if settings else 1
        return min(self.context, len(request.prompt_ids) + most)

    def _open_group(self, row: Row) -> Group | None:
        """The waiting group of the same prompt that this row can still join."""
        last = self._scheduler.waiting[-1] if self._scheduler.waiting else None
        request = row.request
        if last is None or request.samples == 1 or last.width != request.samples or len(last.rows) >= last.width:
            return None
        first = last.rows[0].request
        if first.prompt_id != request.prompt_id or list(first.prompt_ids) != list(request.prompt_ids):
            return None
        longest = max(other.limit for other in (*last.rows, row))
        return last if len(last.rows) < self._scheduler.most_rows(longest, last.shared_blocks()) else None

    @torch.no_grad()
    def _forward(self, job: Job) -> Tensor | None:
        """Sends a job into the pipeline; on the last stage what was chosen: tokens and log-probabilities [2, R]."""
        copy_blocks(self.caches, job.before)
        cache = self.caches[job.lane]
        if isinstance(job, Decode):
            step = DecodeStep(self.model, cache, job)
            ids, size = [row.tokens[-1] if row else self.tokenizer.eos_id for row in job.rows], len(job.rows)
        else:
            ends = self.budget.slots + -self.budget.slots % FOURS
            step = PrefillStep(self.model, cache, job, ends)
            ids, size = job.token_ids, job.size
        logits_1RV = self._pipeline.forward(ids, size, step)
        if not isinstance(job, Decode):
            copy_blocks(self.caches, job.after)
        if logits_1RV is None:
            return None
        result = self._choose(job, logits_1RV[0])
        self._pipeline.tell(result)
        return result

    def _choose(self, job: Job, logits_RV: Tensor) -> Tensor:
        places, rows = _places(job)
        result = torch.zeros((2, len(rows)), dtype=torch.float64)
        if rows:
            if len(rows) < len(logits_RV) or len(places) != len(set(places)):
                logits_RV = logits_RV[torch.tensor(places, device=logits_RV.device)]
            token_R, log_prob_R = choose(logits_RV, [self._choice(row) for row in rows], self._shard)
            # On a GPU a cumulative sum is not deterministic; shards that part ways would wait for each other.
            result = self.mesh.broadcast_from_first_shard(torch.stack((token_R.double(), log_prob_R))).cpu()
        return result

    def _choice(self, row: Row) -> Choice:
        seen = None
        if row.sampling.repetition_penalty != 1:
            seen = np.unique(np.array([*row.request.prompt_ids, *row.tokens], dtype=np.int64))
        return Choice(row.sampling, row.uniforms[len(row.tokens)], self._ending.barred(row), seen)

    def _settle(self) -> list[Event]:
        """Takes the oldest result that is under way."""
        job, result = self._under_way.popleft()
        _, rows = _places(job)
        if result is None:
            result = self._pipeline.hear(torch.zeros((2, len(rows)), dtype=torch.float64))
        if isinstance(job, Decode):
            self._scheduler.decoded(job)
        else:
            for _, group in job.ends:
                self._scheduler.arrived(group)
        events = []
        for row, token, logprob in zip(rows, result[0].tolist(), result[1].tolist()):
            events += self._take(row, int(token), logprob, first=not isinstance(job, Decode))
        return events

    def _take(self, row: Row, token: int, logprob: float, *, first: bool) -> list[Event]:
        made = None if row.cancelled else self._ending.take(row, token, logprob)
        if made is not None or row.cancelled:
            lane = row.group.lane
            blocks = self._scheduler.release(row)
            if token < 0:  # also of a cancelled row: the next row that has these blocks must not read them
                self.caches[lane].wipe(blocks)
        elif first:
            self._scheduler.start(row)
        if row.cancelled:
            return []
        new, row.told = tuple(row.tokens[row.told :]), len(row.tokens)
        if made is not None:
            del self._rows[row.ticket]
        return [Event(row.ticket, new, made)]


def _places(job: Job) -> tuple[list[int], list[Row]]:
    """Which row of the logits each response is drawn from."""
    if isinstance(job, Decode):
        pairs = [(place, row) for place, row in enumerate(job.rows) if row is not None]
    else:
        pairs = [(place, row) for place, (_, group) in enumerate(job.ends) for row in group.rows]
    return [place for place, _ in pairs], [row for _, row in pairs]


def generate(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    mesh: Mesh,
    requests: Sequence[Request],
    sampling: Sampling,
    slots: int,
    on_finished: Callable[[int], None] | None = None,
    **shape: int | bool | None,
) -> list[Generation]:
    """The responses to `requests`, in their order, on every rank of the replica.

    Args:
        sampling: of the requests that have none of their own.
        on_finished: called with the number of rows that have just ended.
        shape: further arguments of `Engine`.
    Raises:
        RowError: a prompt does not fit; nothing has run then.
    """
    engine = Engine(model, tokenizer, mesh, slots=slots, **shape)
    asked = [request if request.sampling else replace(request, sampling=sampling) for request in requests]
    for request in asked:
        engine.check(request)
    for request in asked:
        engine.submit(request)
    done: dict[int, Generation] = {}
    while not engine.idle:
        finished = {event.ticket: event.generation for event in engine.step() if event.generation is not None}
        done.update(finished)
        if finished and on_finished:
            on_finished(len(finished))
    return [done[ticket] for ticket in range(len(asked))]
