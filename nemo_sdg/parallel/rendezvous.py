"""The store that the ranks of one attempt share. torchrun keeps its store over restarts, with all that is in it.

A rank that comes early would read from it where the dead ranks of the attempt before could be reached, wait for them and
give up (pytorch/pytorch: torch/distributed/rendezvous.py takes the agent's store as it is). The number of the restart does
not tell attempts apart: on several nodes only the agent whose worker failed counts it.
"""

from __future__ import annotations

import datetime
import json
import time
import uuid
from typing import Any

import torch.distributed as dist

from nemo_sdg.parallel.watch import LostPeer


def job_store() -> dist.Store:
    """The store of the job that this rank has joined."""
    return dist.distributed_c10d._get_default_store()


def fresh_store(rank: int, world_size: int, timeout_s: float, store: Any = None) -> Any:
    """A part of the job's store that nobody has written to before this attempt, the same one on every rank.

    Rank 0 draws a name and says it; the others answer under it, each with a word of its own; what rank 0 then says under
    it has all those words, so nobody takes an earlier attempt's name, under which its word does not stand.

    Args:
        store: the job's; None is where torchrun's variables say.
    Raises:
        LostPeer: a rank did not come within the timeout.
    """
    timeout, until = datetime.timedelta(seconds=timeout_s), time.monotonic() + timeout_s
    if store is None:
        store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    mine = uuid.uuid4().hex
    if rank == 0:
        answers = [f"nemo_sdg/join/{mine}/{other}" for other in range(1, world_size)]
        store.set("nemo_sdg/join", mine)
        try:
            store.wait(answers, timeout)
        except dist.DistError as error:
            raise LostPeer(f"some of {world_size} ranks did not come in {timeout_s} s") from error
        store.set(f"nemo_sdg/join/{mine}", json.dumps([store.get(answer).decode() for answer in answers]))
        return dist.PrefixStore(f"nemo_sdg/{mine}", store)
    answered, pause = "", 0.02
    while time.monotonic() < until:
        if store.check(["nemo_sdg/join"]):
            name = store.get("nemo_sdg/join").decode()
            told = f"nemo_sdg/join/{name}"
            if name != answered:
                store.set(f"{told}/{rank}", mine)
                answered = name
            if store.check([told]) and mine in json.loads(store.get(told)):
                return dist.PrefixStore(f"nemo_sdg/{name}", store)
        time.sleep(pause)
        pause = min(0.5, 1.3 * pause)  # hundreds of ranks may wait for one that is late
    raise LostPeer(f"rank 0 did not come in {timeout_s} s")
