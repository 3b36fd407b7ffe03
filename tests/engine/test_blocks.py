"""Blocks of keys and values: what is free, what is reserved, and which beginnings of prompts are kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_sdg.engine.blocks import BlockPool, PrefixStore, block_names
from nemo_sdg.engine.budget import BLOCK, blocks_of, make_budget
from nemo_sdg.errors import ConfigError

SIZES = {"groups": 2, "channels": 24, "context": 256, "item_bytes": 4}


def test_own_blocks_lie_at_the_bottom_and_shared_ones_at_the_top():
    pool = BlockPool(6)
    assert [pool.take(), pool.take(), pool.take(shared=True), pool.take(shared=True)] == [0, 1, 5, 4]
    pool.give(0)
    pool.give(5)
    assert (pool.take(), pool.take(shared=True), pool.used) == (0, 5, 4)


@given(st.lists(st.tuples(st.sampled_from(["take", "share", "give"]), st.integers(0, 99)), max_size=80))
def test_no_block_is_given_out_twice(moves):
    pool, out = BlockPool(9), []
    for move, pick in moves:
        if move == "give" and out:
            pool.give(out.pop(pick % len(out)))
        elif move != "give" and len(out) < 9:
            out.append(pool.take(shared=move == "share"))
        assert len(set(out)) == len(out) == pool.used


def test_what_is_reserved_cannot_be_reserved_again():
    pool = BlockPool(4)
    assert pool.reserve(3) and not pool.reserve(2) and pool.reserve(1)
    pool.release(3)
    assert pool.reserve(3) and not pool.reserve(1)


def test_a_block_is_named_by_all_that_stands_before_it():
    one, other = list(range(3 * BLOCK)), list(range(3 * BLOCK))
    other[BLOCK] = 7
    names, others = block_names(one), block_names(other + [1] * (BLOCK - 1))
    assert len(names) == len(others) == 3, "a partial block has no name"
    assert names[0] == others[0] and names[1] != others[1] and names[2] != others[2]


def test_the_store_forgets_what_was_used_longest_ago():
    store = PrefixStore(first=10, blocks=2)
    assert [store.add(b"a"), store.add(b"ab"), store.add(b"a")] == [10, 11, None]
    assert store.find([b"a", b"ab", b"abc"]) == [10, 11]
    assert store.add(b"x") == 11, "the beginning of a chain goes last"
    assert store.find([b"a", b"ab"]) == [10]
    assert store.find([b"y", b"x"]) == [], "a beginning is kept from its beginning"
    assert PrefixStore(3, 0).add(b"a") is None


def test_the_budget_is_what_the_bytes_hold_and_never_more():
    block = 2 * 2 * BLOCK * 24 * 4
    budget = make_budget(**SIZES, stage_layers=[3, 1], slots=8, prefill_tokens=128, kv_cache_bytes=100 * block)
    assert (budget.lanes, budget.slots, budget.block_bytes) == (2, 4, (3 * block, block))
    assert budget.bytes(0) <= 100 * block < budget.bytes(0) + 2 * 3 * block
    assert budget.bytes(1) * 3 == budget.bytes(0)
    whole = make_budget(**SIZES, stage_layers=[4], slots=8, prefill_tokens=128, kv_cache_bytes=None)
    assert whole.blocks == 8 * blocks_of(256) + 2


def test_bytes_that_hold_no_row_are_refused():
    with pytest.raises(ConfigError, match="generate.kv_cache_bytes: .* do not hold one row, found 10, expected 98304"):
        make_budget(**SIZES, stage_layers=[2], slots=8, prefill_tokens=128, kv_cache_bytes=10)
