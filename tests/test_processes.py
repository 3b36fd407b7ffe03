"""The helpers that other tests stand on."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from unittest import mock

from processes import free_port

FROM = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


def test_a_free_port_is_none_that_the_kernel_gives_away_and_none_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first := free_port()))
        taken.listen()
        assert 1024 < first < max(FROM, 20_000)
        other = free_port()
        with mock.patch.object(random.SystemRandom, "sample", lambda self, ports, k: [first, other]):
            assert free_port() == other
