"""The network interface that gloo's messages go through, where a job has several nodes.

gloo takes the address that the node's own name resolves to, which is often a loopback address, and then the other nodes
wait for it in vain. What leads to the node that keeps the store of the job leads to the other nodes as well. Megatron makes
gloo groups beside those of NCCL, so this counts on GPUs too. GLOO_SOCKET_IFNAME is PyTorch's variable for it
(https://docs.pytorch.org/docs/stable/distributed.html, "Choosing the network interface to use").
"""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil

VARIABLE = "GLOO_SOCKET_IFNAME"
_ELSEWHERE = "192.0.2.1"
"""An address that is nobody's (RFC 5737): what would lead there is the way out of this node. Nothing is sent."""


def settle() -> None:
    """Tells gloo its interface, unless the user has, or all ranks are on this machine."""
    job = os.environ
    if VARIABLE in job or "MASTER_ADDR" not in job or job.get("WORLD_SIZE") == job.get("LOCAL_WORLD_SIZE"):
        return
    name = towards(job["MASTER_ADDR"])
    if name is not None:
        job[VARIABLE] = name


def towards(host: str) -> str | None:
    """The interface on the way to a host; where that is this machine by a loopback address, the one that leads out.

    None where the machine has no such way, or the name is unknown.
    """
    for goal in (host, _ELSEWHERE):
        own = _own_address(goal)
        if own is not None and not ipaddress.ip_address(own.partition("%")[0]).is_loopback:
            return next((name for name, there in psutil.net_if_addrs().items() if own in [a.address for a in there]), None)
    return None


def _own_address(goal: str) -> str | None:
    try:
        kind, _, _, _, place = socket.getaddrinfo(goal, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect(place)  # of a datagram socket: looks at the routes, and sends nothing
            return probe.getsockname()[0]
    except OSError:
        return None
