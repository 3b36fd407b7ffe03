"""A chat-completions server on this machine, for tests: OpenAI's shape for a policy, NIM's for a reward model.

What it answers follows from the request alone, so that a row which is invented, swapped or altered shows. It can
misbehave: what goes wrong with a request follows from its conversation, its seed and how often it was asked, so
that a test knows beforehand how many requests each row costs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
FAULTS = ("429", "500", "503", "late", "drip", "cut", "reset", "malformed", "error", "shape")


@dataclass
class OpenAIServer:
    """What the server has, how it misbehaves, and what it was asked."""

    models: dict[str, str] | None = field(default_factory=lambda: {"policy": "somebody"})
    """Name -> owner; None: it keeps no list."""
    key: str | None = None
    """The key that it wants."""
    rates: dict[str, float] = field(default_factory=dict)
    """Fault -> share of the tries that it hits."""
    late_s: float = 5.0
    latency_s: float = 0.0
    retry_after: str | None = None
    most: int | None = None
    """Requests at a time; more are answered with 429."""
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    """A text in the conversation -> the status and message that it is always answered with."""
    code: str | None = None
    """The code that stands in what it refuses."""
    answer: Any = None
    """(request) -> the whole answer, in place of the usual one."""
    asked: list[dict] = field(default_factory=list)
    """The bodies of all chat requests, in the order of arrival."""
    keys: list[str | None] = field(default_factory=list)
    """The Authorization header of every request."""
    headers: list[dict[str, str]] = field(default_factory=list)
    tries: Counter = field(default_factory=Counter)
    """Requests per conversation and seed."""
    times: dict[str, list[float]] = field(default_factory=dict)
    under_way: int = 0
    peak: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def faults_of(self, name: str, tries: int) -> list[str | None]:
        """What goes wrong with the first tries of a request; None for one that is answered."""
        return [self._fault(name, number) for number in range(tries)]

    def _fault(self, name: str, number: int) -> str | None:
        drawn = int.from_bytes(hashlib.sha256(f"{name} {number}".encode()).digest()[:4], "big") / 2**32
        for fault in FAULTS:
            drawn -= self.rates.get(fault, 0.0)
            if drawn < 0:
                return fault
        return None


def name_of(request: dict) -> str:
    """What a request is told apart by: its conversation and its seed."""
    return json.dumps([request["messages"], request.get("seed")], sort_keys=True)


def reply_to(request: dict) -> str:
    """The text that the policy answers with."""
    return f"{request['messages'][-1]['content']} -> {request.get('seed')}"


def scores_of(messages: list[dict]) -> dict[str, float]:
    """The scores that the reward model gives: multiples of 1/64, as bf16 gives them, also above 4 and below 0."""
    drawn = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).digest()
    return {name: drawn[index] / 64 + (1 if index else -0.5) for index, name in enumerate(ATTRIBUTES)}


def completion(request: dict, owner: str) -> dict:
    """The whole answer to a request, of a reward model if an assistant speaks last."""
    choice: dict[str, Any] = {"index": 0}
    if request["messages"][-1]["role"] == "assistant":
        scores = scores_of(request["messages"])
        text = ",".join(f"{name}:{value}" for name, value in scores.items())
        entries = [{"token": name, "logprob": value, "top_logprobs": []} for name, value in scores.items()]
        choice |= {"message": [{"role": "assistant", "content": text}], "finish_reason": "length"}
        choice["logprobs"] = {"content": entries}
    else:
        text = reply_to(request)
        choice |= {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
        if request.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": c, "logprob": -len(c) / 4} for c in text.split()]}
        if owner == "nemo_sdg":
            choice["nemo_sdg"] = {"token_ids": [ord(c) for c in text], "finish_reason": "context"}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": request["model"], "choices": [choice]}


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[OpenAIServer]:
    """A server on a port of its own; its base URL is `url`."""
    told = OpenAIServer(**settings)
    handler = type("Handler", (_Handler,), {"told": told})
    server = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 256})(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    told.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    told: OpenAIServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self._known() and self.path == "/v1/models" and self.told.models is not None:
            data = [{"id": name, "object": "model", "owned_by": owner} for name, owner in self.told.models.items()]
            self._json(200, {"object": "list", "data": data})
        elif self.told.models is None or self.path != "/v1/models":
            self._error(404, "no such page")

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        try:
            body = self.rfile.read(size)
        except ConnectionResetError:
            body = b""
        if len(body) < size:  # the one who asked has given up
            self.close_connection = True
            return
        if not self._known():
            return
        if self.path != "/v1/chat/completions":
            return self._error(404, "no such page")
        request, told = json.loads(body), self.told
        name = name_of(request)
        with told.lock:
            told.asked.append(request)
            told.headers.append(dict(self.headers))
            fault = told._fault(name, told.tries[name])
            told.tries[name] += 1
            told.times.setdefault(name, []).append(time.monotonic())
            told.under_way += 1
            told.peak = max(told.peak, told.under_way)
            if told.most is not None and told.under_way > told.most:
                fault = "429"
        try:
            time.sleep(told.latency_s)
            self._answer(request, fault)
        except (BrokenPipeError, ConnectionResetError):  # the one who asked has given up
            self.close_connection = True
        finally:
            with told.lock:
                told.under_way -= 1

    def _known(self) -> bool:
        self.told.keys.append(self.headers["Authorization"])
        if self.told.key is None or self.headers["Authorization"] == f"Bearer {self.told.key}":
            return True
        self._error(401, f"Incorrect API key provided: {self.headers['Authorization']}")
        return False

    def _answer(self, request: dict, fault: str | None) -> None:
        told = self.told
        if told.models is not None and request["model"] not in told.models:
            return self._error(404, f"The model `{request['model']}` does not exist.")
        if fault in ("429", "500", "503"):
            headers = {"Retry-After": told.retry_after} if told.retry_after else {}
            return self._error(int(fault), "busy", headers)
        if fault == "late":
            time.sleep(told.late_s)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
            self.close_connection = True
            return
        if fault == "error":
            return self._json(200, {"error": {"message": "the worker died", "code": 500}})
        for text, (status, message) in told.refuse.items():
            if text in json.dumps(request["messages"], ensure_ascii=False):
                return self._error(status, message)
        owner = (told.models or {}).get(request["model"], "")
        answer = told.answer(request) if told.answer else completion(request, owner)
        if fault == "shape":
            del answer["choices"][0]["message"], answer["choices"][0]["logprobs"]
        body = json.dumps(answer).encode()
        if fault == "malformed":
            body = body[: len(body) // 2]
        self._send(200, body, cut=fault == "cut", drip=fault == "drip")

    def _error(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self._json(status, {"error": {"message": message, "type": "error", "code": self.told.code or status}}, headers)

    def _json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), headers)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        cut: bool = False,
        drip: bool = False,
    ) -> None:
        self.send_response(status)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        for key, value in sent.items():
            self.send_header(key, value)
        self.end_headers()
        if drip:
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(0.1)
            return
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True
