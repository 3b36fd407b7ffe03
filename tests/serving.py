"""A real `nemo-sdg serve` for tests: a fork of this process, which has imported everything once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai

WORLD = Path(__file__).resolve().parents[1] / "examples" / "tiny"
POLICY = ("--policy", str(WORLD / "instruct"))
REWARD = ("--reward", str(WORLD / "reward"))
START_S = 90


@dataclass
class Served:
    """A server that runs."""

    pid: int
    terminal: Path
    """What it shows."""
    key: str = "none"
    status: int | None = None
    """How it ended."""

    @property
    def text(self) -> str:
        return self.terminal.read_text()

    @property
    def url(self) -> str:
        return self.text.split(" at ")[1].split(";")[0]

    def client(self, **options: object) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=self.key, **{"max_retries": 0, "timeout": 60, **options})

    def ranks(self) -> list[int]:
        """Process ids of the ranks that it has forked, in their order."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def wait(self, limit_s: float = 60) -> int:
        """Its exit status, once it has ended."""
        until = time.monotonic() + limit_s
        while self.status is None:
            pid, code = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(code)
            assert self.status is not None or time.monotonic() < until, f"it does not end:\n{self.text}"
            time.sleep(0.02)
        return self.status

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.status is None:
            os.kill(self.pid, number)
        return self.wait()


@contextlib.contextmanager
def served(*options: str, environment: dict[str, str] | None = None) -> Iterator[Served]:
    """Runs `nemo-sdg serve OPTIONS` on a port of the kernel's choice, until the block ends."""
    import megatron.core  # noqa: F401  (once, before the fork)

    import nemo_sdg.serve.rank  # noqa: F401
    from nemo_sdg import cli
    from nemo_sdg.parallel import launch

    with tempfile.TemporaryDirectory() as folder:
        terminal = Path(folder, "terminal")
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                launch.die_with_parent()
                os.environ.update(environment or {})
                file = os.open(terminal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                for descriptor in (1, 2):
                    os.dup2(file, descriptor)
                # What pytest put in their place holds on to other files.
                sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
                sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
                status = cli.main(["serve", *options, "--port", "0", "--threads", "1"])
            finally:
                os._exit(status)
        server = Served(pid, terminal)
        until = time.monotonic() + START_S
        try:
            while "serving " not in (server.text if terminal.exists() else ""):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    server.status = -1
                    raise AssertionError(f"the server did not start:\n{server.text}")
                assert time.monotonic() < until, f"the server takes too long:\n{server.text}"
                time.sleep(0.02)
            yield server
        finally:
            if server.status is None:
                os.kill(pid, signal.SIGTERM)
                with contextlib.suppress(AssertionError):
                    server.wait(20)
            if server.status is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
