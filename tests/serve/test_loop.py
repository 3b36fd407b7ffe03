"""The loop with a real engine and no HTTP: what is withdrawn is not computed, and a stop ends what it must."""

from __future__ import annotations

import asyncio
import dataclasses
import threading

import pytest
from ranks import run_ranks
from serving import WORLD

from nemo_sdg.config import ATTRIBUTES
from nemo_sdg.engine.generate import Engine
from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.serve.desk import Desk, Order
from nemo_sdg.serve.loop import Judge, Loop
from nemo_sdg.serve.refusals import ApiError

LENGTH = 60


def run(mesh, client, grace_s: float = 60):
    """Runs the loop on this rank while `client(desk, order)` acts in a thread of rank 0; what the client saw."""
    model, tokenizer = load_model(WORLD / "instruct", mesh)
    engine = Engine(model, tokenizer, mesh, slots=4)
    desk, seen = (Desk(8) if mesh.writer else None), []

    def order(samples: int) -> Order:
        sampling = Sampling(max_tokens=LENGTH, min_tokens=LENGTH)
        ids = tokenizer.encode("3 + 4 =")
        rows = [{"prompt_id": "p", "sample": n, "prompt_ids": ids, "samples": samples} for n in range(samples)]
        return Order({"requests": rows, "sampling": dataclasses.asdict(sampling)}, samples)

    thread = threading.Thread(target=lambda: seen.append(asyncio.run(client(desk, order))))
    if desk:
        thread.start()
    Loop(mesh, engine, None, desk, grace_s).run()
    if desk:
        thread.join()
    return seen, engine.stats.decode_rows, engine.idle


async def withdraws(desk: Desk, order) -> str:
    placed = order(4)
    desk.place(placed)
    await placed.answers.get()
    desk.release(placed, finished=False)
    desk.put("stop")
    return "withdrawn"


async def stops(desk: Desk, order) -> tuple[int, str]:
    placed = order(4)
    desk.place(placed)
    await placed.answers.get()
    desk.put("stop")
    finished = 0
    while finished < 4:
        came = await placed.answers.get()
        if isinstance(came, ApiError):
            return finished, came.code
        finished += came[2] is not None
    with pytest.raises(ApiError) as refused:
        desk.place(order(1))
    return finished, refused.value.code


async def fills(desk: Desk, order) -> list[str]:
    """A desk for eight rows takes any order when it is empty, and none beyond eight."""
    codes = []
    for samples in (9, 1):
        try:
            desk.place(order(samples))
            codes.append("taken")
        except ApiError as refused:
            codes.append(refused.code)
    desk.put("stop")
    return codes


@pytest.mark.parametrize("ranks", [dict(), dict(tp=2), dict(pp=2)], ids=str)
def test_a_withdrawn_order_is_not_computed(ranks):
    for seen, decoded, idle in run_ranks(run, withdraws, **ranks):
        assert decoded < 4 * LENGTH / 2 and idle
        assert seen in ([], ["withdrawn"])


@pytest.mark.parametrize("grace_s, expected", [(60, (4, "stopping")), (0, (0, "stopping"))])
def test_a_stop_lets_work_end_within_the_grace(grace_s, expected):
    for seen, decoded, idle in run_ranks(run, stops, grace_s, pp=2):
        assert seen in ([], [expected]) and idle
        assert decoded == 4 * (LENGTH - 1) if grace_s else decoded < 4 * LENGTH / 2


def test_a_full_desk():
    [(seen, *_)] = run_ranks(run, fills, 0)
    assert seen == [["taken", "too_many_waiting"]]


def share(mesh):
    """Sizes of the turns in which five conversations of 20 tokens are scored, 50 tokens at a time."""
    model, tokenizer = load_model(WORLD / "reward", mesh, reward=True)
    desk, sizes = Desk(8), []
    loop = Loop(mesh, None, Judge(model, tokenizer, pack_tokens=50), desk, 60)

    async def clients():
        orders = [Order({"conversation": [300 + n] * 20}, 1) for n in range(5)]
        for order in orders:
            desk.place(order)
        while loop.to_score or not sizes:
            turn = loop._turn()
            loop._submit(turn)
            loop._score(turn["score"])
            sizes.append(len(turn["score"]))
        return [await order.answers.get() for order in orders]

    answers = asyncio.run(clients())
    return sizes, [sorted(answer) for answer in answers]


def test_many_conversations_do_not_keep_others_waiting():
    [(sizes, answers)] = run_ranks(share)
    assert sizes == [2, 2, 1]
    assert answers == [sorted(ATTRIBUTES)] * 5
