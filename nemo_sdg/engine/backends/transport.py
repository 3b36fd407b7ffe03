"""Requests to one server: many at a time from a thread of their own, each tried again within one budget.

The `openai` client sends them. Its own retries are off, so that the budget counts once: they keep a slot busy while
they wait, hide a 429 from whoever adapts the concurrency, and know nothing of an answer that is cut short.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

import httpx
import openai

from nemo_sdg.config import Endpoint
from nemo_sdg.engine.backends.concurrency import Limiter
from nemo_sdg.engine.backends.faults import Passing, late, read_json, translate
from nemo_sdg.errors import ConfigError

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Seconds before the first try again, doubled for each further one up to the longest."""

Reader = Callable[[Any], Any]
"""Makes something of a parsed answer; raises RowError if it is not what was asked for."""


class Transport:
    """The client of one server. It opens with the first request and again after `close`.

    Raises:
        ConfigError: what the environment variable holds cannot be a key.
    """

    def __init__(self, endpoint: Endpoint, name: str) -> None:
        self._endpoint, self._name = endpoint, name
        self._key = os.environ.get(endpoint.key_env, "").strip()
        if not self._key.isascii() or any(character.isspace() for character in self._key):
            raise ConfigError(
                "the key cannot be sent", where=f"environment variable {endpoint.key_env}",
                found="spaces or letters beyond ASCII", expected="the key alone",
            )  # fmt: skip
        self._loop: asyncio.AbstractEventLoop | None = None
        self.faults: Counter[str] = Counter()
        """Tries that failed and may be repeated, by what went wrong."""

    @property
    def has_key(self) -> bool:
        return bool(self._key)

    def start(self, work: Coroutine) -> Future:
        """Runs a coroutine in the thread of the requests."""
        if self._loop is None:
            # A line for each request would bury what else the log says.
            logging.getLogger("httpx").setLevel(logging.WARNING)
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
            self._thread.start()
            asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Ends the requests under way and the connections."""
        loop, self._loop = self._loop, None
        if loop is not None:
            with contextlib.suppress(CancelledError):
                asyncio.run_coroutine_threadsafe(self._end(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    async def chat(self, body: dict[str, Any], read: Reader) -> Any:
        """What `read` makes of a chat completion.

        Raises:
            Passing: the last of all tries that the budget allows has failed.
            Everybody: the server would refuse any row.
            RowError: it refuses this one, or `read` does.
        """
        return await self._persist(lambda: self._create(**body), read)

    async def models(self, read: Reader) -> Any:
        """Likewise of the list of models."""
        return await self._persist(self._list, read)

    async def _begin(self) -> None:
        most = self._endpoint.concurrency
        self.limiter = Limiter(most)
        self._client = openai.AsyncOpenAI(
            base_url=self._endpoint.url, api_key=self._key or "none", max_retries=0, timeout=self._endpoint.timeout_s,
            http_client=openai.DefaultAsyncHttpxClient(
                limits=httpx.Limits(max_connections=most, max_keepalive_connections=most)
            ),
        )  # fmt: skip
        # The client would take these from its own environment variables and send them to any server.
        unsaid: dict[str, Any] = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
        if not self._key:
            unsaid["Authorization"] = openai.Omit()
        self._create = partial(self._client.chat.completions.with_raw_response.create, extra_headers=unsaid)
        self._list = partial(self._client.models.with_raw_response.list, extra_headers=unsaid)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()

    async def _persist(self, send: Callable[[], Awaitable[Any]], read: Reader) -> Any:
        for tries in itertools.count():
            try:
                return read(await self._try(send))
            except Passing as fault:
                self.faults[str(fault)] += 1
                if tries >= self._endpoint.retries:
                    raise
                wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**tries) * random.uniform(0.5, 1)
                await asyncio.sleep(max(wait, self._bounded(fault.wait_s) or 0))

    async def _try(self, send: Callable[[], Awaitable[Any]]) -> Any:
        """The parsed answer of one request."""
        async with self.limiter.slot() as slot:
            began = time.monotonic()
            try:
                # The client's own limit is on each read, and a server may send a byte now and then.
                raw = await asyncio.wait_for(send(), self._endpoint.timeout_s)
                answer = read_json(raw.content)
            except (asyncio.TimeoutError, openai.APIError, Passing) as error:
                fault = _fault(error, self._key)
                if isinstance(fault, Passing) and fault.crowded:
                    self.limiter.refused(slot, self._bounded(fault.wait_s))
                raise fault from None
            self.limiter.succeeded(time.monotonic() - began)
            return answer

    def _bounded(self, wait_s: float | None) -> float | None:
        """A server that asks for an hour gets as long as a request may take."""
        return None if wait_s is None else min(wait_s, self._endpoint.timeout_s)


def _fault(error: Exception, hide: str) -> Exception:
    if isinstance(error, asyncio.TimeoutError):
        return late()
    return translate(error, hide) if isinstance(error, openai.APIError) else error
