"""How many requests a server gets at a time: as many as it bears, by additive increase and multiplicative decrease.

The rule is that of Chiu and Jain ("Analysis of the increase and decrease algorithms for congestion avoidance", 1989),
which TCP made known; that a rising latency is a sign of congestion too is TCP Vegas' (Brakmo and Peterson, 1995).
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator

SLOWER = 2.0
"""A window whose median latency is above this many times the best one's says that requests queue up."""
_FORGET = 1.01
"""The best median rises by so much a window: what was fast once may have been luck, or an easier prompt."""
_SMALLEST_WINDOW = 4


class Limiter:
    """Slots for requests, in one event loop. It begins with all that the user allows.

    The server says that it is too much (429, 503): half as many, once for all the requests that were under way when it
    said so. It gets slower: an eighth fewer. A window of successes, as many as there are slots, at the usual speed: one
    more, up to what the user allows.
    """

    def __init__(self, most: int) -> None:
        self.most = self.limit = most
        self.under_way = 0
        self._changed = asyncio.Condition()
        self._generation = 0
        self._closed_until = 0.0
        self._window: list[float] = []
        self._best: float | None = None

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[int]:
        """Waits for a slot and holds it in the `async with` block; gives what `refused` wants to be told."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self.under_way < self.limit)
                pause = self._closed_until - time.monotonic()
                if pause <= 0:
                    self.under_way += 1
                    generation = self._generation
                    break
            await asyncio.sleep(pause)
        try:
            yield generation
        finally:
            self.under_way -= 1
            async with self._changed:
                self._changed.notify(max(1, self.limit - self.under_way))

    def refused(self, generation: int, wait_s: float | None = None) -> None:
        """The server had too much to do; nobody asks it before `wait_s` seconds are over, if it gave a time."""
        if wait_s is not None:
            self._closed_until = max(self._closed_until, time.monotonic() + wait_s)
        if generation == self._generation:  # not yet halved since this request began
            self._generation += 1
            self.limit = max(1, self.limit // 2)
            self._window.clear()

    def succeeded(self, seconds: float) -> None:
        """An answer came after so many seconds."""
        self._window.append(seconds)
        if len(self._window) < max(self.limit, _SMALLEST_WINDOW):
            return
        median = statistics.median(self._window)
        self._window.clear()
        self._best = median if self._best is None else min(median, self._best * _FORGET)
        if median > SLOWER * self._best:
            self.limit -= min(self.limit - 1, max(1, self.limit // 8))
        elif self.limit < self.most:
            self.limit += 1
