"""Keys and values: the bytes that are held, the prompts that are computed, and what is let go."""

from __future__ import annotations

import pytest
import torch
from folders import small_shape
from ranks import run_ranks

from nemo_sdg.engine.budget import BLOCK
from nemo_sdg.engine.generate import Engine, Request
from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.requests import Sampling
from nemo_sdg.errors import RowError

EIGHT = Sampling(max_tokens=8, min_tokens=8)


def bound(mesh, folder, kv_cache_bytes):
    model, tokenizer = load_model(folder, mesh)
    before = sum(tensor.nbytes for tensor in model.parameters())
    engine = Engine(model, tokenizer, mesh, slots=6, kv_cache_bytes=kv_cache_bytes)
    for index in range(12):
        engine.submit(Request(f"p{index}", 0, [30 + index] * 100, EIGHT))
    finished = 0
    while not engine.idle:
        finished += sum(event.generation is not None for event in engine.step())
    assert finished == 12
    held = sum(tensor.untyped_storage().nbytes() for c in engine.caches for tensor in (c.key_LKGPD, c.value_LKGPD))
    assert held == engine.kv_bytes == engine.budget.bytes(mesh.pp_rank) and before
    return held, engine.stats.peak_blocks, engine.budget.blocks


@pytest.mark.parametrize("tp, pp", [(1, 1), (2, 1), (1, 2)])
def test_a_rank_holds_what_the_setting_allows(folders, tp, pp):
    block = 2 * 4 * 2 * BLOCK * 24 * 4 // (tp * pp)
    allowed = 12 * pp * block + 5
    for held, peak, blocks in run_ranks(bound, folders["policy"], allowed, tp=tp, pp=pp):
        assert allowed - pp * block < held <= allowed
        assert peak <= pp * blocks


def test_by_default_every_slot_can_fill_the_context(folders):
    held, _, blocks = run_ranks(bound, folders["policy"], None)[0]
    assert blocks == 6 * small_shape().seq_length // BLOCK + 512 // BLOCK
    assert held == (blocks + blocks // 8) * 2 * 4 * 2 * BLOCK * 24 * 4


def refused(mesh, folder):
    model, tokenizer = load_model(folder, mesh)
    engine = Engine(model, tokenizer, mesh, slots=2, kv_cache_bytes=3 * 2 * 4 * 2 * BLOCK * 24 * 4)
    engine.check(Request("p", 0, [30] * 100, EIGHT))
    with pytest.raises(RowError, match="do not fit the bytes .* found 208 tokens, expected 192 at most; raise generate.kv"):
        engine.check(Request("p", 0, [30] * 200, EIGHT))
    with pytest.raises(RowError, match="longer than the context"):
        engine.check(Request("p", 0, [30] * 256, EIGHT))
    with pytest.raises(RowError, match="has no tokens"):
        engine.submit(Request("p", 0, [], EIGHT))
    return engine.idle


def test_a_prompt_that_can_never_fit_is_known_before_anything_runs(folders):
    assert run_ranks(refused, folders["policy"])[0]


def fan(mesh, folder, samples):
    model, tokenizer = load_model(folder, mesh)
    engine = Engine(model, tokenizer, mesh, slots=16)
    for prompt in range(2):
        for sample in range(samples):
            engine.submit(Request(f"p{prompt}", sample, [30 + prompt] * 150, EIGHT, samples))
    while not engine.idle:
        engine.step()
    return engine.stats.prefill_tokens, engine.stats.peak_blocks


def test_samples_share_the_prompt(folders):
    assert run_ranks(fan, folders["policy"], 8)[0] == (2 * 150, 2 * (2 + 8))


def crowd(mesh, folder):
    """More samples of a prompt than the lane can hold at once."""
    model, tokenizer = load_model(folder, mesh)
    engine = Engine(model, tokenizer, mesh, slots=4, kv_cache_bytes=9 * 2 * 4 * 2 * BLOCK * 24 * 4)
    for sample in range(20):
        engine.submit(Request("p", sample, [30] * 150, EIGHT, 20))
    made = {}
    while not engine.idle:
        made.update({event.ticket: event.generation.token_ids for event in engine.step() if event.generation})
    return made, engine.budget.blocks


def test_samples_that_do_not_fit_at_once_come_one_after_the_other(folders):
    made, blocks = run_ranks(crowd, folders["policy"])[0]
    assert blocks < 2 + 20 and len(made) == 20 and all(len(tokens) == 8 for tokens in made.values())


def cancelled(mesh, folder):
    model, tokenizer = load_model(folder, mesh)
    engine = Engine(model, tokenizer, mesh, slots=2)
    tickets = [engine.submit(Request(f"p{i}", 0, [30 + i] * 10, Sampling(max_tokens=40, min_tokens=40))) for i in range(5)]
    events = []
    for turn in range(500):
        if turn == 6:
            for ticket in (tickets[0], tickets[3]):
                engine.cancel(ticket)
            told = len(events)
        events += engine.step()
        if engine.idle:
            break
    assert not any(event.ticket in (tickets[0], tickets[3]) for event in events[told:])
    assert all(lane.pool.used == 0 for lane in engine._scheduler.lanes)
    return sorted(event.ticket for event in events if event.generation), engine.room


@pytest.mark.parametrize("pp", [1, 2])
def test_a_cancelled_row_ends_without_a_word(folders, pp):
    for finished, room in run_ranks(cancelled, folders["policy"], pp=pp):
        assert finished == [1, 2, 4] and room


def told(mesh, folder):
    model, tokenizer = load_model(folder, mesh)
    engine = Engine(model, tokenizer, mesh, slots=3)
    for index in range(5):
        engine.submit(Request(f"p{index}", 0, [30 + index] * 70, Sampling(max_tokens=9, seed=3)))
    said, made = {}, {}
    while not engine.idle:
        for event in engine.step():
            said.setdefault(event.ticket, []).extend(event.token_ids)
            if event.generation is not None:
                made[event.ticket] = list(event.generation.token_ids)
    assert torch.is_grad_enabled()
    return said, made


@pytest.mark.parametrize("pp", [1, 2])
def test_events_tell_every_token_once(folders, pp):
    for said, made in run_ranks(told, folders["policy"], pp=pp):
        assert said == made and len(made) == 5


def kept_messages(mesh, folder):
    """The most messages that a stage keeps while it generates."""
    model, tokenizer = load_model(folder, mesh, dtype="fp32")
    engine, most = Engine(model, tokenizer, mesh, slots=4), 0
    for number in range(12):
        engine.submit(Request(f"p{number}", 0, [30 + number], EIGHT))
    while not engine.idle:
        engine.step()
        most = max(most, len(engine._pipeline._sent))
    return most


def test_messages_that_were_heard_are_not_kept(folders):
    first, second = run_ranks(kept_messages, folders["policy"], pp=2)
    assert 0 < first <= 2 and 0 < second <= 2


def cancelled_and_not_finite(mesh, folder):
    """What the blocks hold after a row of nan was cancelled while its result was on its way."""
    model, tokenizer = load_model(folder, mesh, dtype="fp32")
    with torch.no_grad():
        if mesh.first_stage:
            model.embedding.word_embeddings.weight[77] = float("nan")
    engine = Engine(model, tokenizer, mesh, slots=2)
    ticket = engine.submit(Request("bad", 0, [30, *[77] * 40], EIGHT))
    engine.step()
    engine.cancel(ticket)
    while not engine.idle:
        engine.step()
    blocks = engine.budget.blocks
    return all(bool(cache.key_LKGPD[:, :blocks].isfinite().all()) for cache in engine.caches)


def test_a_cancelled_row_leaves_nothing_that_is_not_finite(folders):
    assert all(run_ranks(cancelled_and_not_finite, folders["policy"], pp=2))
