"""What passes between the HTTP server's thread and the loop of the ranks, both on rank 0. No torch.

The server places orders and withdraws them; the loop takes both between two steps and hands back what was made.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_sdg.serve.refusals import ApiError, busy, stopping


@dataclass(eq=False)
class Order:
    """What one HTTP request wants of the ranks."""

    work: dict[str, Any]
    """JSON for every rank: {"requests", "sampling"} for the policy, {"conversation"} for the reward model."""
    rows: int
    """Answers that will come."""
    answers: asyncio.Queue = field(default_factory=asyncio.Queue)
    """(index, new token ids, Generation or None) from the policy, five scores by name from the reward model, or
    the ApiError that ends the order."""


@dataclass
class Counts:
    """What has become of the requests so far."""

    answered: int = 0
    refused: int = 0
    cancelled: int = 0


class Desk:
    """Where the two threads meet."""

    def __init__(self, most_rows: int) -> None:
        """
        Args:
            most_rows: answers that may wait or be under way at a time; more are refused with 429.
        """
        self.most_rows = most_rows
        self.counts = Counts()
        # Its `put` may be called in a signal handler that has interrupted a `put` or `get` of the same thread.
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: set[Order] = set()
        self.closed = False

    # The server's side: only ever called in the thread of its event loop.

    def place(self, order: Order) -> None:
        """Raises ApiError if too much waits already, or nothing is taken any more."""
        if self.closed:
            raise stopping()
        waiting = sum(known.rows for known in self._open)
        # One order always fits an empty desk, however many samples it wants.
        if self._open and waiting + order.rows > self.most_rows:
            raise busy(waiting)
        self._loop = asyncio.get_running_loop()
        self._open.add(order)
        self._inbox.put(("order", order))

    def release(self, order: Order, *, finished: bool) -> None:
        """The request is over. If it is not finished, nobody waits for it any more, and the ranks forget it."""
        if order in self._open:
            self._open.remove(order)
            if finished:
                self.counts.answered += 1
            else:
                self.counts.cancelled += 1
                self._inbox.put(("withdrawn", order))

    # The loop's side, and the signal handler.

    def put(self, kind: str, what: Any = None) -> None:
        """A message for the loop: "stop", or "failed" with the reason."""
        self._inbox.put((kind, what))

    def take(self, wait_s: float | None = 0.0) -> list[tuple[str, Any]]:
        """All messages since the last call: ("order" | "withdrawn", order), ("stop", ...), ("failed", error).

        Args:
            wait_s: how long to wait for the first one; None waits for ever, without using the processor.
        """
        messages = []
        try:
            messages.append(self._inbox.get(timeout=wait_s) if wait_s != 0 else self._inbox.get_nowait())
            while True:
                messages.append(self._inbox.get_nowait())
        except queue.Empty:
            return messages

    def close(self) -> None:
        """Takes no more orders."""
        self.closed = True

    def hand_out(self, answers: Sequence[tuple[Order, Any]]) -> None:
        """Gives orders what was made for them."""
        if answers and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_fill, list(answers))

    def fail(self, error: ApiError) -> None:
        """Ends all orders that are still open with this answer, and takes no more."""
        self.close()
        self.hand_out([(order, error) for order in list(self._open)])


def _fill(answers: list[tuple[Order, Any]]) -> None:
    for order, answer in answers:
        order.answers.put_nowait(answer)
