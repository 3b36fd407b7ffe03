"""Processes for tests: how long one computes, a port for one, and a fork of this one whose terminal is two files."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Done:
    """How a process ended and what it showed."""

    returncode: int
    stdout: str
    stderr: str


def cpu_seconds(code: str) -> tuple[float, str]:
    """(seconds, standard output) of `python -c code` in the repository; fails when it does.

    CPU time of that process alone, so it does not depend on what else the machine does.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout


def free_port() -> int:
    """A port that nobody listens at, for a program that has to be told one.

    From below the range that the kernel draws from: a port of that range, found and let go, may belong to the next
    connection of any other test before the program has opened it.
    """
    # Where the range begins lower than that, as some machines have it, there is no better place.
    lowest = max(20_000, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]))
    for port in random.SystemRandom().sample(range(lowest - 10_000, lowest), k=100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise AssertionError("somebody listens at each of a hundred ports")


def forked(fn: Callable[[], int]) -> Done:
    """Runs `fn` in a fork of this process, which has imported everything once, and shows what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                for descriptor, path in ((1, out), (2, err)):
                    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                    os.dup2(file, descriptor)
                    os.close(file)
                # What pytest put in their place holds on to other files.
                sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
                sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
                status = fn()
            finally:
                os._exit(status)
        _, code = os.waitpid(pid, 0)
        return Done(os.waitstatus_to_exitcode(code), out.read_text(), err.read_text())
