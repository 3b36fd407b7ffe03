"""The pipeline schedule, played through: known bubbles, known numbers of micro batches in flight, and one that hangs."""

from __future__ import annotations

import pytest

from nemo_sdg.parallel.schedule import BACKWARD, FORWARD, orders, play


@pytest.mark.parametrize("pp, batches, chunks", [(1, 3, 1), (2, 3, 1), (4, 8, 1), (4, 8, 2), (12, 128, 1), (12, 96, 8)])
def test_the_bubble_is_the_published_one(pp, batches, chunks):
    # Narayanan et al. 2021 (arXiv 2104.04473), section 2.2: (p - 1) / (v m) of the time that the work takes.
    played = play(orders(pp, batches, chunks), chunks)
    assert not played.stuck
    assert played.idle == pytest.approx((pp - 1) / chunks / (batches + (pp - 1) / chunks))


def test_a_stage_holds_as_many_micro_batches_as_there_are_stages_from_it_on():
    assert play(orders(4, 8)).in_flight == [4, 3, 2, 1]
    assert play(orders(4, 2)).in_flight == [2, 2, 2, 1]


def test_interleaved_stages_hold_more_and_smaller_ones():
    # (pp - 1) x 2 + (v - 1) x pp before the first backward pass, and the one that goes with it.
    assert play(orders(4, 8, 2), 2).in_flight == [11, 9, 7, 5]


def test_micro_batches_that_fill_no_whole_turn_never_end():
    assert play(orders(12, 64, 8), 8).stuck


def test_an_order_that_waits_for_itself_is_found():
    wanted = orders(2, 2)
    wanted[1] = [(BACKWARD, 0, 0), (FORWARD, 0, 0), (FORWARD, 1, 0), (BACKWARD, 1, 0)]
    assert play(wanted).stuck == [
        "stage 0 waits before the backward pass of micro batch 0",
        "stage 1 waits before the backward pass of micro batch 0",
    ]
