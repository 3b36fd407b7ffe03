"""The HTTP side: routes, the key, limits, streams, and clients that go away. It runs in one thread of rank 0."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from nemo_sdg.errors import RowError
from nemo_sdg.serve import protocol, replies
from nemo_sdg.serve.answers import Judging, Talking
from nemo_sdg.serve.desk import Desk, Order
from nemo_sdg.serve.refusals import ApiError, from_row, unknown_model

BODY_BYTES = 4 * 2**20
"""Longest body: far above what a context of 4,096 tokens holds, even with every character escaped."""
BODY_S = 30.0
"""Seconds that a client may take to send its body."""
LARGE = 2**16
"""Bodies from here on are parsed and encoded in another thread, so that the streams of others do not wait."""


class Front:
    """What the routes share."""

    def __init__(self, desk: Desk, models: dict[str, Talking | Judging], key: str | None) -> None:
        self.desk, self.models = desk, models
        self.key = None if key is None else key.encode()
        self.started = int(time.time())

    def app(self) -> Starlette:
        routes = [
            Route("/health", self.health, methods=["GET"]),
            Route("/v1/models", self.list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.one_model, methods=["GET"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        handlers = {ApiError: self._refused, RowError: self._refused, HTTPException: self._no_route}
        return Starlette(routes=routes, exception_handlers={**handlers, Exception: _defect})

    async def health(self, request: Request) -> Response:
        """Open to everybody: it says nothing but that the server works."""
        return _json({"status": "stopping" if self.desk.closed else "ok"}, 503 if self.desk.closed else 200)

    async def list_models(self, request: Request) -> Response:
        self._authorise(request)
        return _json({"object": "list", "data": [self._model(name) for name in self.models]})

    async def one_model(self, request: Request) -> Response:
        self._authorise(request)
        return _json(self._model(request.path_params["name"]))

    async def chat(self, request: Request) -> Response:
        self._authorise(request)
        body = await _body(request)
        prepare = self._prepare
        asked = await (run_in_threadpool(prepare, body) if len(body) > LARGE else _at_once(prepare, body))
        self.desk.place(asked.order)
        if asked.stream:
            return Stream(asked.events(), self.desk, asked.order)
        return await self._whole(request, asked)

    def _prepare(self, data: bytes) -> Any:
        body = protocol.parse_json(data)
        name = body.get("model")
        if not isinstance(name, str) or name not in self.models:
            raise unknown_model(name, list(self.models))
        return self.models[name].prepare(body)

    async def _whole(self, request: Request, asked: Any) -> Response:
        """The answer in one piece; nothing, if the client goes away before it is there."""
        answer, gone = asyncio.ensure_future(asked.answer()), asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                return Response(status_code=499)  # nobody reads it
            reply = answer.result()
            self.desk.release(asked.order, finished=True)
            return _json(reply)
        finally:
            self.desk.release(asked.order, finished=False)
            for task in (answer, gone):
                task.cancel()

    def _model(self, name: str) -> dict[str, Any]:
        if name not in self.models:
            raise unknown_model(name, list(self.models))
        model = self.models[name]
        about = {"role": model.role, "digest": model.digest}
        shown = {"id": name, "object": "model", "created": self.started, "owned_by": replies.OWNER}
        return {**shown, "max_model_len": model.context, "nemo_sdg": about}

    def _authorise(self, request: Request) -> None:
        if self.key is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        # In constant time: how long a comparison takes must not tell how much of a key is right.
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.key) or kind.lower() != "bearer":
            raise ApiError(401, "the key is missing or wrong; send it as a bearer token", code="invalid_api_key")

    async def _refused(self, request: Request, error: Exception) -> Response:
        self.desk.counts.refused += 1
        refusal = error if isinstance(error, ApiError) else from_row(error)
        return _json(refusal.body(), refusal.status, refusal.headers)

    async def _no_route(self, request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path}: this server has no such route, expected POST /v1/chat/completions"
        return _json(ApiError(error.status_code, what, code="unknown_url").body(), error.status_code, error.headers)


class Stream(StreamingResponse):
    """Server-sent events; when they end, also because the client went away, the order ends."""

    def __init__(self, events: AsyncIterator[dict[str, Any] | None], desk: Desk, order: Order) -> None:
        self._desk, self._order = desk, order
        super().__init__(
            self._written(events), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._desk.release(self._order, finished=False)

    async def _written(self, events: Any) -> AsyncIterator[bytes]:
        async with aclosing(events):
            try:
                async for data in events:
                    yield replies.event(data)
                yield replies.event("[DONE]")
                self._desk.release(self._order, finished=True)
            except ApiError as error:  # the status has gone out already
                yield replies.event(error.body())


async def _at_once(prepare: Callable[[bytes], Any], body: bytes) -> Any:
    return prepare(body)


async def _body(request: Request) -> bytes:
    """Raises ApiError for a body that is too long, too slow, or not announced as JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # A web page may send any other type to a server on this machine without asking first.
        raise ApiError(415, "the body is not announced as application/json", code="unsupported_media_type")
    try:
        return await asyncio.wait_for(_read(request), BODY_S)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_S:.0f} s", code="body_too_slow") from None


async def _read(request: Request) -> bytes:
    data, length = bytearray(), 0
    async for part in request.stream():
        length += len(part)
        if length <= BODY_BYTES:
            data += part
        elif length > 16 * BODY_BYTES:
            break
    # Said after the body was read, or the client would find a broken connection instead of the answer.
    if length > BODY_BYTES:
        raise ApiError(413, f"the body is longer than {BODY_BYTES} bytes", code="body_too_large")
    return bytes(data)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(data: dict[str, Any], status: int = 200, headers: Any = None) -> Response:
    return Response(json.dumps(data).encode(), status, headers, media_type="application/json")


async def _defect(request: Request, error: Exception) -> Response:
    traceback.print_exception(error)  # into the log
    return _json(ApiError(500, "a defect of ours; the traceback is in the server's log").body(), 500)
