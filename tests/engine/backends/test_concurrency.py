"""How many requests are under way: never more than allowed, fewer where the server suffers, more again after that."""

from __future__ import annotations

import asyncio
import time

import pytest

from nemo_sdg.engine.backends.concurrency import Limiter


def under(work):
    return asyncio.run(work())


async def use(limiter: Limiter) -> int:
    async with limiter.slot() as slot:
        return slot


def test_no_more_than_allowed_and_all_come_through():
    async def work():
        limiter, peak = Limiter(3), 0

        async def one():
            nonlocal peak
            async with limiter.slot():
                peak = max(peak, limiter.under_way)
                await asyncio.sleep(0.001)

        await asyncio.wait_for(asyncio.gather(*(one() for _ in range(40))), 10)
        assert (peak, limiter.under_way) == (3, 0)

    under(work)


def test_those_under_way_together_halve_once_and_one_is_the_least():
    async def work():
        limiter = Limiter(64)
        slots = [await use(limiter) for _ in range(8)]
        for slot in slots:  # all were sent before the first of them was refused
            limiter.refused(slot)
        assert limiter.limit == 32
        for expected in (16, 8, 4, 2, 1, 1):
            limiter.refused(await use(limiter))
            assert limiter.limit == expected

    under(work)


def test_a_window_of_successes_gives_one_more_up_to_what_is_allowed():
    async def work():
        limiter = Limiter(10)
        limiter.refused(await use(limiter))
        assert limiter.limit == 5
        for _ in range(4):
            limiter.succeeded(0.1)
        assert limiter.limit == 5
        limiter.succeeded(0.1)
        assert limiter.limit == 6
        for _ in range(1000):
            limiter.succeeded(0.1)
        assert limiter.limit == 10

    under(work)


def test_a_refusal_begins_the_window_anew():
    async def work():
        limiter = Limiter(8)
        for _ in range(3):
            limiter.succeeded(0.1)
        limiter.refused(await use(limiter))  # 4 from here on
        limiter.succeeded(0.1)
        assert limiter.limit == 4

    under(work)


def test_a_server_that_gets_slower_gets_less_and_one_that_recovers_gets_more():
    async def work():
        limiter = Limiter(16)
        for _ in range(16):
            limiter.succeeded(0.1)
        for _ in range(16):
            limiter.succeeded(0.19)  # within the noise
        assert limiter.limit == 16
        for _ in range(16):
            limiter.succeeded(0.25)
        assert limiter.limit == 14
        for _ in range(14):
            limiter.succeeded(0.1)
        assert limiter.limit == 15

    under(work)


def test_what_has_been_slow_for_long_counts_as_usual_again():
    async def work():
        limiter = Limiter(16)
        for _ in range(16):
            limiter.succeeded(0.1)
        lowest = 16
        for _ in range(2000):
            limiter.succeeded(0.25)
            lowest = min(lowest, limiter.limit)
        assert lowest == 1 and limiter.limit == 16

    under(work)


def test_nobody_asks_before_the_time_that_the_server_gave():
    async def work():
        limiter = Limiter(4)
        slot = await use(limiter)
        began = time.monotonic()
        limiter.refused(slot, 0.2)
        limiter.refused(slot, 0.05)  # a shorter one does not open it earlier
        await asyncio.gather(*(use(limiter) for _ in range(5)))
        assert 0.2 <= time.monotonic() - began < 2

    under(work)


def test_a_slot_is_given_back_whatever_happens():
    async def work():
        limiter = Limiter(1)
        with pytest.raises(ZeroDivisionError):
            async with limiter.slot():
                1 / 0
        holder = asyncio.ensure_future(_hold(limiter))
        await asyncio.sleep(0.01)
        waiting = asyncio.ensure_future(use(limiter))
        await asyncio.sleep(0.01)
        holder.cancel()
        await asyncio.wait_for(waiting, 5)
        assert limiter.under_way == 0

    under(work)


async def _hold(limiter: Limiter) -> None:
    async with limiter.slot():
        await asyncio.sleep(60)
