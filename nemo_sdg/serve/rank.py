"""What one rank of a server does, from the loading of the models to its end."""

from __future__ import annotations

import signal
import socket
import sys
import time
import traceback

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import RunConfig
from nemo_sdg.console import Console
from nemo_sdg.engine.generate import Engine
from nemo_sdg.engine.load import load_model
from nemo_sdg.parallel.agree import on_writer
from nemo_sdg.parallel.launch import GRACE_S
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.serve.answers import Judging, Talking
from nemo_sdg.serve.desk import Desk
from nemo_sdg.serve.http import Front
from nemo_sdg.serve.launch import KEY_ENV, Serving
from nemo_sdg.serve.loop import Judge, Loop
from nemo_sdg.serve.refusals import ApiError, stopping
from nemo_sdg.serve.server import HttpServer, bind, is_local, url

SPARE_CONNECTIONS = 256
"""Connections beside those whose answers are waited for: clients that are idle, refused or ask for health."""
TURN_S = 5e-4
"""Seconds for which one of rank 0's two threads runs while the other one wants to. With Python's own 5 ms the model
would wait that long, many times in each step, while answers are written."""

Models = dict[str, Talking | Judging]


def work(
    config: RunConfig, serving: Serving, names: dict[str, str], key: str | None, mesh: Mesh, console: Console
) -> int:
    """Returns the exit status when the server was told to stop."""
    try:
        with console.progress("loading the models"):
            engine, judge, models = _load(config, serving, names, mesh)
        desk = Desk(config.generate.slots + serving.most_waiting) if mesh.writer else None
        loop = Loop(mesh, engine, judge, desk, serving.grace_s)
        _heed_signals(desk)
        sockets: list[socket.socket] = []
        # Bound now, so that every rank learns when that fails; reachable only when it listens.
        on_writer(mesh, lambda: sockets.append(bind(serving.host, serving.port)))
        if desk is None:
            loop.run()
        else:
            _serve(serving, models, key, loop, desk, sockets[0], console)
    except RuntimeError:
        # A rank that dies breaks the messages of the others. Whoever started the ranks knows which one it was, says
        # so, and ends this one while it waits here.
        traceback.print_exc()  # into the log
        time.sleep(GRACE_S + 1 if mesh.world_size > 1 else 0)
        raise
    return 0


def _load(
    config: RunConfig, serving: Serving, names: dict[str, str], mesh: Mesh
) -> tuple[Engine | None, Judge | None, Models]:
    """The engine with the policy, the reward model, and what the HTTP side knows of both."""
    engine, judge = None, None
    models: Models = {}
    settings = config.generate
    for role, path in serving.folders.items():
        reward, name, digest = role == "reward", names[role], ModelFolder.open(path).digest
        model, tokenizer = load_model(path, mesh, dtype=config.models.dtype, reward=reward, spec=config.models.spec)
        context = model.max_sequence_length
        if reward:
            judge = Judge(model, tokenizer, config.score.pack_tokens)
            models[name] = Judging(name, digest, tokenizer, context)
        else:
            engine = Engine(
                model, tokenizer, mesh, slots=settings.slots, prefill_tokens=settings.prefill_tokens,
                kv_cache_bytes=settings.kv_cache_bytes, fixed_shape=settings.fixed_shape,
            )  # fmt: skip
            models[name] = Talking(name, digest, tokenizer, context, engine.check)
    return engine, judge, models


def _heed_signals(desk: Desk | None) -> None:
    """Rank 0 ends all ranks when it is told to; the others, which get the same signals, wait for it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN if desk is None else lambda *_: desk.put("stop"))


def _serve(
    serving: Serving, models: Models, key: str | None, loop: Loop, desk: Desk, bound: socket.socket, console: Console
) -> None:
    """Rank 0: opens the port, says so, works until it is told to stop, and lets the last answers go out."""
    sys.setswitchinterval(TURN_S)
    server = HttpServer(Front(desk, models, key).app(), bound, desk, desk.most_rows + SPARE_CONNECTIONS)
    server.start()
    console.close()  # what follows may be silent for days
    port = bound.getsockname()[1]
    console.say(f"serving {' and '.join(models)} at {url(serving.host, port)}; SIGTERM or Ctrl-C stops it")
    if key is None and not is_local(serving.host):
        console.say(f"warning: whoever reaches {serving.host}:{port} can use it; set {KEY_ENV} to ask for a key")
    try:
        loop.run()
        desk.fail(stopping())
    except BaseException:
        desk.fail(ApiError(500, "the server has failed; see its log"))
        raise
    finally:
        server.stop()
    counts = desk.counts
    console.say(f"stopped: {counts.answered} answered, {counts.refused} refused, {counts.cancelled} cancelled")
