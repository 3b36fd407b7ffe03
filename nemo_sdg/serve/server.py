"""uvicorn in a thread of rank 0: the port, the start, and an end that lets the last answers go out."""

from __future__ import annotations

import ipaddress
import resource
import socket
import threading
from typing import Any

import uvicorn

from nemo_sdg.errors import ConfigError
from nemo_sdg.serve.desk import Desk

FLUSH_S = 5
"""Seconds that answers which are finished have to reach their clients at the end."""
KEEP_ALIVE_S = 75
"""Seconds that an idle connection stays open. uvicorn's own 5 are shorter than the pauses of many clients, which then
find their connection closed in the moment in which they use it again."""


def bind(host: str, port: int) -> socket.socket:
    """A socket at that address, which nobody can reach before it listens. Raises ConfigError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        return bound
    except (OSError, UnicodeError, OverflowError) as error:
        raise ConfigError(
            "the server cannot use this address", where=f"--host {host} --port {port}",
            found=getattr(error, "strerror", None) or str(error), expected="a free port of this machine",
            way_out="choose another --port, or --port 0 for any that is free",
        ) from error  # fmt: skip


def is_local(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def _allow_files(connections: int) -> None:
    """Each connection is an open file, of which a process may have 1,024 unless it asks for more."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 1024
    if now != resource.RLIM_INFINITY and now < wanted:
        limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


class HttpServer:
    """The thread that speaks HTTP."""

    def __init__(self, app: Any, bound: socket.socket, desk: Desk, most_connections: int) -> None:
        _allow_files(most_connections)
        config = uvicorn.Config(
            app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            limit_concurrency=most_connections, timeout_graceful_shutdown=FLUSH_S, timeout_keep_alive=KEEP_ALIVE_S,
        )  # fmt: skip
        self._server, self._bound, self._desk = uvicorn.Server(config), bound, desk
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """From here on the port is open."""
        self._bound.listen(2048)
        self._thread.start()

    def stop(self) -> None:
        """Closes the port, and waits until what is finished has gone out."""
        self._server.should_exit = True
        self._thread.join(FLUSH_S + 5)

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._bound])
        except BaseException as error:
            self._desk.put("failed", error)
        else:
            self._desk.put("failed", RuntimeError("the HTTP server has ended by itself"))
