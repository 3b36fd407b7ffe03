"""Two hosts on one machine: network namespaces with a cable between them, which can be pulled. Needs root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PORT = 29511
_NAMED = "import os, socket, sys; socket.sethostname(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"


def reason() -> str | None:
    """Why this machine cannot play two hosts; None where it can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    if shutil.which("ip") is None:
        return "needs the program ip (iproute2)"
    probe = f"probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True)
    return f"network namespaces are refused: {made.stderr.strip()}" if made.returncode else None


class TwoHosts:
    """A `with` block in which two hosts exist, node1 and node2; all that was started on them ends with it."""

    def __init__(self) -> None:
        self.names = [f"host-{os.getpid()}-{number}" for number in (1, 2)]
        self.cables = [f"c{os.getpid()}-{number}" for number in (1, 2)]
        self.jobs: list[subprocess.Popen] = []

    def __enter__(self) -> "TwoHosts":
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", self.cables[0], "type", "veth", "peer", "name", self.cables[1])
        for number, (name, cable) in enumerate(zip(self.names, self.cables), start=1):
            etc = Path("/etc/netns", name)  # what `ip netns exec` puts in the place of /etc
            etc.mkdir(parents=True)
            # As Debian has it: a host's own name is a loopback address, which is of no use to the other host.
            others = f"10.77.0.{3 - number} node{3 - number}"
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 node{number}\n{others}\n")
            _ip("link", "set", cable, "netns", name)
            _ip("-n", name, "link", "set", cable, "name", "eth7")
            _ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth7")
            for device in ("lo", "eth7"):
                _ip("-n", name, "link", "set", device, "up")
        return self

    def __exit__(self, *error: object) -> None:
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)
        for job in self.jobs:
            job.wait()
        for name in self.names:
            _ip("netns", "del", name)
            shutil.rmtree(Path("/etc/netns", name))

    def plugged(self, yes: bool) -> None:
        """Puts the cable in, or pulls it."""
        _ip("-n", self.names[1], "link", "set", "eth7", "up" if yes else "down")

    def torchrun(self, *words: str, homes: tuple[str | None, str | None] = ("", "")) -> list[subprocess.Popen]:
        """`torchrun ... -m nemo_sdg WORDS` on both, with one rank each.

        Args:
            homes: HOME on each host; None takes it away.
        """
        place = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "hosts"]
        place += ["--rdzv_endpoint", f"node1:{PORT}"]
        started = []
        for number, (name, home) in enumerate(zip(self.names, homes), start=1):
            command = ["ip", "netns", "exec", name, "unshare", "--uts", sys.executable, "-c", _NAMED, f"node{number}"]
            command += [sys.executable, "-m", "torch.distributed.run", *place]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            environment |= {"HOME": home} if home else {}
            if home is None:
                environment.pop("HOME", None)
            started.append(
                subprocess.Popen(
                    [*command, "-m", "nemo_sdg", *words], env=environment, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, text=True,
                )  # fmt: skip
            )
        self.jobs += started
        return started

    def left(self) -> list[int]:
        """Processes that are still there on either host."""
        told = [subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True) for name in self.names]
        return [int(pid) for one in told for pid in one.stdout.split()]


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
