"""The loop of every rank: what rank 0 has been asked goes to all of them, all take one step, rank 0 answers.

Between two steps rank 0 broadcasts a turn: new requests, withdrawn ones, conversations to score. All ranks submit
the same in the same order, so their schedulers stay equal. When nothing is under way they wait for rank 0's bell.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from typing import Any

import numpy as np
import torch

from nemo_sdg.engine.generate import Engine
from nemo_sdg.engine.requests import Request, Sampling
from nemo_sdg.engine.score import named, score
from nemo_sdg.errors import RowError
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.serve.bell import Bell
from nemo_sdg.serve.desk import Desk, Order
from nemo_sdg.serve.refusals import ApiError, from_row, not_finite, stopping

ECHO_S = 1.0
"""A signal to stop that comes later than this after the first ends the grace. A launcher passes on what a terminal has
sent to all of its processes, so that each of them may get one Ctrl-C twice."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """A reward model and how it is run."""

    model: torch.nn.Module
    tokenizer: Tokenizer
    pack_tokens: int


class Loop:
    """One rank's part of the server."""

    def __init__(
        self, mesh: Mesh, engine: Engine | None, judge: Judge | None, desk: Desk | None, grace_s: float
    ) -> None:
        """
        Args:
            desk: on rank 0 alone.
            grace_s: how long what is under way may take after the server was told to stop.
        """
        self.mesh, self.engine, self.judge, self.desk, self.grace_s = mesh, engine, judge, desk, grace_s
        self.bell = Bell(mesh)
        self.owners: dict[int, tuple[Order, int]] = {}
        """Which order a ticket of the engine belongs to, and which of its answers it is."""
        self.new: list[Order] = []
        self.withdrawn: list[int] = []
        self.to_score: deque[Order] = deque()
        self.stop_by: float | None = None
        self.told_at = 0.0

    def run(self) -> None:
        """Returns, on every rank, after rank 0 was told to stop."""
        while True:
            if self._idle():
                self._wait()
            turn = self.mesh.broadcast_object(self._turn() if self.desk else None)
            self._submit(turn)
            if turn["score"]:
                self._score(turn["score"])
            if not self._idle():
                self._step()
            if turn["stop"]:
                break
        while not self._idle():  # what was cancelled may still be on its way through the pipeline
            self._step()

    def _idle(self) -> bool:
        """The same on every rank."""
        return self.engine is None or self.engine.idle

    def _wait(self) -> None:
        if self.desk is None:
            self.bell.wait()
            return
        while not (self.new or self.withdrawn or self.to_score or self.stop_by is not None):
            self._sort(self.desk.take(None))
        self.bell.ring()

    def _sort(self, messages: list[tuple[str, Any]]) -> None:
        for kind, what in messages:
            if kind == "order":
                (self.to_score if "conversation" in what.work else self.new).append(what)
            elif kind == "withdrawn":
                for orders in (self.new, self.to_score):
                    if what in orders:
                        orders.remove(what)
                gone = [ticket for ticket, (order, _) in self.owners.items() if order is what]
                for ticket in gone:
                    del self.owners[ticket]
                self.withdrawn += gone
            elif kind == "failed":
                raise what
            else:
                self._stop(time.monotonic())

    def _stop(self, now: float) -> None:
        if self.stop_by is None:
            self.stop_by, self.told_at = now + self.grace_s, now
            self.desk.close()
        elif now > self.told_at + ECHO_S:
            self.stop_by = now

    def _turn(self) -> dict[str, Any]:
        """What all ranks do next; on rank 0."""
        self._sort(self.desk.take())
        over = self.stop_by is not None and time.monotonic() >= self.stop_by
        if over:
            self.new, self.to_score = [], deque()
            self.withdrawn += self.owners
            self.owners = {}
            self.desk.fail(stopping())
        rows, tokens = [], 0
        for order in self.to_score:
            tokens += len(order.work["conversation"])
            if rows and tokens > self.judge.pack_tokens:
                break  # scoring many at once would keep those who wait for their next token waiting
            rows.append(order.work["conversation"])
        nothing_left = not (self.new or self.to_score or self.owners)
        return {
            "new": [order.work for order in self.new],
            "withdrawn": self.withdrawn,
            "score": rows,
            "stop": over or (self.stop_by is not None and nothing_left),
        }

    def _submit(self, turn: dict[str, Any]) -> None:
        for ticket in turn["withdrawn"]:
            self.engine.cancel(ticket)
        answers = []
        for position, work in enumerate(turn["new"]):
            sampling = Sampling(**{**work["sampling"], **_tuples(work["sampling"])})
            for index, row in enumerate(work["requests"]):
                try:
                    ticket = self.engine.submit(Request(**row, sampling=sampling))
                except RowError as error:  # on every rank alike
                    if self.desk:
                        answers.append((self.new[position], from_row(error)))
                    break
                if self.desk:
                    self.owners[ticket] = (self.new[position], index)
        self.new, self.withdrawn = [], []
        if self.desk:
            self.desk.hand_out(answers)

    def _step(self) -> None:
        events = self.engine.step()
        if self.desk is None:
            return
        answers: list[tuple[Order, Any]] = []
        for event in events:
            if event.ticket in self.owners:
                order, index = self.owners[event.ticket]
                answers.append((order, (index, event.token_ids, event.generation)))
                if event.generation is not None:
                    del self.owners[event.ticket]
        self.desk.hand_out(answers)

    def _score(self, conversations: list[list[int]]) -> None:
        judge = self.judge
        rewards_RA = score(judge.model, judge.tokenizer, self.mesh, conversations, judge.pack_tokens)
        if self.desk is None:
            return
        answers: list[tuple[Order, dict[str, float] | ApiError]] = []
        for rewards_A in rewards_RA:
            good = bool(np.isfinite(rewards_A).all())
            answers.append((self.to_score.popleft(), named(rewards_A, judge.model.outputs) if good else not_finite()))
        self.desk.hand_out(answers)


def _tuples(sampling: dict[str, Any]) -> dict[str, tuple]:
    """JSON knows lists only."""
    return {name: tuple(value) for name, value in sampling.items() if isinstance(value, list)}
