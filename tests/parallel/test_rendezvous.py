"""Ranks that torchrun starts again find each other, and never those of the attempt before, in the store that it keeps."""

from __future__ import annotations

import threading

import pytest
import torch.distributed as dist

from nemo_sdg.parallel.rendezvous import fresh_store
from nemo_sdg.parallel.watch import LostPeer


@pytest.fixture
def store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def client(store):
    return dist.TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)


def attempt(store, order, world_size=3):
    """Each rank writes who it is and reads what rank 0 has written; they come in this order, well apart."""
    read = {}

    def rank(number):
        mine = fresh_store(number, world_size, 20, client(store))
        if number == 0:
            assert not mine.check(["place"])
            mine.set("place", f"of {order}")
        read[number] = mine.get("place").decode()

    threads = [threading.Thread(target=rank, args=(number,)) for number in order]
    for thread in threads:
        thread.start()
        thread.join(0.3)
    for thread in threads:
        thread.join(20)
    return read


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_a_later_attempt_reads_nothing_of_an_earlier_one(store, order):
    for again in ((0, 1, 2), order, order[::-1]):
        assert attempt(store, again) == dict.fromkeys(range(3), f"of {again}")


def test_a_rank_that_does_not_come(store):
    attempt(store, (0, 1, 2))
    with pytest.raises(LostPeer, match="some of 3 ranks did not come in 0.2 s"):
        fresh_store(0, 3, 0.2, client(store))
    with pytest.raises(LostPeer, match="rank 0 did not come in 0.2 s"):
        fresh_store(1, 3, 0.2, client(store))
