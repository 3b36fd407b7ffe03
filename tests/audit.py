"""A net under code that opens what strangers made: what Python's audit hooks see of it, in a child process.

The child is forked from a process that has imported everything, so it has no reason to import, to compile, to
start or to connect anything, to write any file, or to read one outside of what it was given (PEP 578; the events
are those of the table in Python's documentation, "Audit events table").
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import select
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

FORBIDDEN = (
    "exec", "compile", "import", "marshal.", "pickle.find_class", "code.__new__", "function.__new__", "cpython.run_",
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.kill", "os.putenv", "os.unsetenv",
    "subprocess.", "pty.", "socket.", "ssl.", "urllib.", "http.", "ftplib.", "smtplib.", "ctypes.", "sys.addaudithook",
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate",
    "os.utime", "os.setxattr", "os.chdir", "shutil.", "tempfile.", "signal.pthread_kill", "webbrowser.", "sqlite3.",
)  # fmt: skip
READS = ("open", "os.listdir", "os.scandir", "os.walk", "glob.glob")
_PYTHON = tuple({os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
WALL_S = 10.0
"""A child that has not answered by then hangs."""
MEMORY = 1 << 30
"""Bytes of address space that a child may take besides what it began with."""


@dataclass(frozen=True)
class Seen:
    """What became of a case."""

    outcome: str
    """What `fn` returned, or the name of what it raised and its message."""
    violations: tuple[str, ...]
    cpu_s: float
    wall_s: float


def watched(fn: Callable[[], str], allowed: Sequence[Path]) -> Seen:
    """Run `fn` in a fork of this process under the hook; files below `allowed` may be read, none may be written."""
    receive, send = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(fn, [os.path.realpath(path) for path in allowed], send)
    os.close(send)
    text, in_time = b"", True
    while in_time:
        in_time = bool(select.select([receive], [], [], max(0, WALL_S - (time.monotonic() - started)))[0])
        part = os.read(receive, 1 << 16) if in_time else b""
        if not part:
            break
        text += part
    os.close(receive)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    _, code = os.waitpid(pid, 0)
    wall = time.monotonic() - started
    try:
        outcome, violations, cpu = json.loads(text)
    except ValueError:
        ended = f"ended with {os.waitstatus_to_exitcode(code)}" if in_time else f"hung for {WALL_S:.0f} s"
        return Seen(f"the child {ended}", (), wall, wall)
    return Seen(outcome, tuple(violations), cpu, wall)


def _child(fn: Callable[[], str], allowed: list[str], send: int) -> None:
    violations: list[str] = []
    busy = False

    def hook(event: str, arguments: tuple) -> None:
        nonlocal busy
        if busy:
            return
        busy = True  # what the hook itself does is not looked at
        try:
            if event.startswith(FORBIDDEN):
                violations.append(f"{event} {str(arguments)[:120]}")
            elif event in READS:
                violations.extend(_wrong_file(event, arguments, allowed))
        finally:
            busy = False

    status = 1
    try:
        faulthandler.disable()
        space = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (space + MEMORY, space + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        before = time.process_time()
        sys.addaudithook(hook)
        try:
            outcome = fn()
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        busy = True
        result = json.dumps([outcome, violations, time.process_time() - before]).encode()
        while result:
            result = result[os.write(send, result) :]
        status = 0
    finally:
        os._exit(status)


def _wrong_file(event: str, arguments: tuple, allowed: list[str]) -> list[str]:
    path = arguments[0]
    if isinstance(path, int) or path is None:
        return []
    real = os.path.realpath(os.fsdecode(path))
    mode, flags = (*arguments[1:], None, None)[:2]
    writes = event == "open" and (
        (isinstance(mode, str) and set(mode) & set("wax+"))
        or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
    )
    if writes:
        return [f"writes {real}"]
    inside = any(real == folder or real.startswith(folder + os.sep) for folder in (*allowed, *_PYTHON))
    return [] if inside else [f"{event} {real}"]
