"""The scheduler alone, without a model: a driver answers its jobs as the last pipeline stage would, late by the stages."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_sdg.engine.blocks import block_names
from nemo_sdg.engine.budget import BLOCK, Budget
from nemo_sdg.engine.jobs import Decode, Group, Prefill, Row
from nemo_sdg.engine.requests import Request, Sampling
from nemo_sdg.engine.scheduler import Scheduler

CONTEXT = 6 * BLOCK


def make_group(name: str, prompt: list[int], lengths: list[int], first_ticket: int = 0) -> Group:
    rows = []
    for sample, length in enumerate(lengths):
        request = Request(name, sample, prompt, Sampling(max_tokens=length), samples=len(lengths))
        limit = min(CONTEXT, len(prompt) + length)
        rows.append(Row(first_ticket + sample, request, request.sampling, limit, np.zeros(length)))
    return Group(rows, len(lengths), block_names(prompt))


class Driver:
    """Runs the jobs of a scheduler, and holds each block's content so that a wrong table is seen."""

    def __init__(self, budget: Budget, *, prefill_tokens: int = 128, fixed_shape: bool = True) -> None:
        self.scheduler = Scheduler(budget, prefill_tokens=prefill_tokens, fixed_shape=fixed_shape)
        self.budget, self.jobs, self.finished = budget, [], {}
        self.content = [dict() for _ in range(budget.lanes)]
        """By lane and block: the tokens that it holds, and the rows or prompt that wrote them."""

    def run(self) -> None:
        under_way: deque = deque()
        scheduler = self.scheduler
        while not scheduler.idle or under_way:
            if len(under_way) == self.budget.lanes:
                self.settle(under_way.popleft())
            job = scheduler.next_job()
            if job is not None:
                self.execute(job)
                under_way.append(job)
            else:
                assert under_way, "nothing is under way and nothing can be done: a deadlock"
                scheduler.stats.ticks += 1
                scheduler.stats.bubbles += 1
                self.settle(under_way.popleft())
            if self.budget.lanes == 1 and under_way:
                self.settle(under_way.popleft())
        for lane in scheduler.lanes:
            assert lane.pool.used == 0 and lane.pool.unreserved == lane.pool.size, "blocks are lost"

    def copy(self, copies) -> None:
        for source, block, target, to in copies:
            self.content[target][to] = dict(self.content[source].get(block, {}))

    def execute(self, job) -> None:
        self.jobs.append(job)
        self.copy(job.before)
        content = self.content[job.lane]
        if isinstance(job, Prefill):
            assert len(job.token_ids) <= job.size and len(job.ends) <= self.budget.slots
            for unit in job.units:
                tokens = job.token_ids[unit.offset : unit.offset + unit.count]
                assert unit.count <= BLOCK and unit.start % BLOCK == 0
                content[unit.blocks[-1]] = dict(enumerate(tokens))
            self.copy(job.after)
            return
        for row in filter(None, job.rows):
            table = [*row.group.shared, *row.blocks]
            place = row.length - 1
            content.setdefault(table[place // BLOCK], {})[place % BLOCK] = row.tokens[-1]
            whole = [*row.request.prompt_ids, *row.tokens]
            seen = [content[table[at // BLOCK]][at % BLOCK] for at in range(row.length)]
            assert seen == whole, "a row reads what is not its own"

    def settle(self, job) -> None:
        if isinstance(job, Decode):
            self.scheduler.decoded(job)
            rows = [row for row in job.rows if row is not None]
        else:
            for _, group in job.ends:
                self.scheduler.arrived(group)
            rows = [row for _, group in job.ends for row in group.rows]
        for row in rows:
            if not row.cancelled:
                row.tokens.append(1000 + 1000 * row.ticket + len(row.tokens))
            if row.cancelled or len(row.tokens) == row.sampling.max_tokens:
                assert row.ticket not in self.finished, "a row ends twice"
                self.finished[row.ticket] = len(row.tokens)
                self.scheduler.release(row)
            elif isinstance(job, Prefill):
                self.scheduler.start(row)


PROMPT = st.tuples(st.integers(1, 2), st.integers(1, 3 * BLOCK))


@given(
    st.lists(st.tuples(PROMPT, st.lists(st.integers(1, 90), min_size=1, max_size=4)), min_size=1, max_size=12),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 5),
    st.integers(24, 40),
    st.booleans(),
)
def test_every_row_is_served_once_and_reads_its_own_blocks(drawn, lanes, slots, blocks, fixed_shape):
    driver = Driver(Budget(lanes, slots, blocks, 3, (1,) * lanes), fixed_shape=fixed_shape)
    lengths = {}
    for index, ((begin, length), answers) in enumerate(drawn):
        group = make_group(f"p{index}", [begin] * length, answers, first_ticket=len(lengths))
        lengths.update({row.ticket: row.sampling.max_tokens for row in group.rows})
        driver.scheduler.add(group)
    driver.run()
    assert driver.finished == lengths


def run(groups, *, lanes=1, slots=4, blocks=60, store=8, **kwargs) -> Driver:
    driver = Driver(Budget(lanes, slots, blocks, store, (1,) * lanes), **kwargs)
    for group in groups:
        driver.scheduler.add(group)
    driver.run()
    return driver


def numbered(lengths, prompt=10):
    return [make_group(f"p{i}", [2 + i] * prompt, [length], first_ticket=i) for i, length in enumerate(lengths)]


def test_a_freed_slot_is_filled_at_once():
    driver = run(numbered([5, 60, 60, 60, 60, 5, 5, 5]), slots=4)
    decodes = [sum(row is not None for row in job.rows) for job in driver.jobs if isinstance(job, Decode)]
    # Work that waits never sees an empty slot: four at a time until fewer than four are left.
    assert decodes == sorted(decodes, reverse=True) and decodes[:60] == [4] * 60


def test_prompts_are_packed_without_padding():
    stats = run(numbered([3] * 64, prompt=31), slots=16, prefill_tokens=128).scheduler.stats
    assert stats.prefill_tokens == 64 * 31 and stats.prefill_steps == 16
    assert stats.padded_tokens == 16 * (128 - 4 * 31)


def test_a_hole_is_filled_with_a_prompt_that_fits():
    groups = [make_group("a", [2] * 100, [2]), make_group("b", [3] * 60, [2], 1), make_group("c", [4] * 28, [2], 2)]
    driver = run(groups, prefill_tokens=128)
    assert [len(job.token_ids) for job in driver.jobs if isinstance(job, Prefill)] == [128, 60]


def test_a_prompt_is_computed_once_for_all_its_samples():
    stats = run([make_group("a", [2] * 150, [20] * 8)], slots=8).scheduler.stats
    assert stats.prefill_tokens == 150
    assert stats.peak_blocks == 2 + 8 * 1, "two whole blocks are shared, and each response writes in one of its own"


def test_what_samples_share_is_kept_until_the_last_of_them_has_ended():
    """While the long sample goes on, another prompt wants the blocks of the short one."""
    groups = [make_group("a", [2] * (2 * BLOCK), [2, 80]), make_group("b", [3] * (2 * BLOCK), [20], first_ticket=2)]
    driver = run(groups, slots=2, blocks=7, store=0)
    assert driver.finished == {0: 2, 1: 80, 2: 20} and driver.scheduler.stats.peak_blocks <= 7


def test_a_later_turn_takes_the_beginning_from_the_store():
    driver = run([make_group("turn 1", [2] * 150, [20])])
    driver.scheduler.add(make_group("turn 2", [2] * 150 + [3] * 40, [20], first_ticket=1))
    driver.run()
    assert driver.scheduler.stats.reused_tokens == 2 * BLOCK
    assert driver.scheduler.stats.prefill_tokens == 150 + 190 - 2 * BLOCK


def test_the_last_token_of_a_prompt_is_always_computed():
    driver = run([make_group("a", [2] * (2 * BLOCK), [3])])
    driver.scheduler.add(make_group("b", [2] * (2 * BLOCK), [3], first_ticket=1))
    driver.run()
    assert driver.scheduler.stats.reused_tokens == BLOCK


def test_a_prompt_that_the_store_cannot_hold_leaves_its_beginning():
    driver = run([make_group("a", [2] * 300, [3])], store=2)
    driver.scheduler.add(make_group("b", [2] * 300 + [3], [3], first_ticket=1))
    driver.run()
    assert driver.scheduler.stats.reused_tokens == 2 * BLOCK


def test_rows_wait_for_blocks_and_all_are_served():
    driver = run(numbered([100] * 6, prompt=60), slots=6, blocks=6)
    assert driver.scheduler.stats.peak_blocks <= 6
    assert max(sum(row is not None for row in job.rows) for job in driver.jobs if isinstance(job, Decode)) == 2


@pytest.mark.parametrize("lanes", [2, 4])
def test_stages_are_hardly_ever_idle(lanes):
    rng = np.random.default_rng(0)
    lengths = np.minimum(np.exp(rng.normal(np.log(40), 1.4, 256)), 320).astype(int) + 1
    stats = run(numbered(lengths.tolist()), lanes=lanes, slots=64 // lanes, blocks=600).scheduler.stats
    assert stats.idle_ticks <= 0.1 * stats.stage_ticks
    assert stats.moved_rows > 0, "without rows that move to an empty lane, the last rows of one lane run alone"


def test_prompts_with_many_samples_are_shared_out_over_the_lanes():
    """One lane must not take them all because its slots were free first."""
    rng = np.random.default_rng(0)
    lengths = (np.minimum(np.exp(rng.normal(np.log(40), 1.4, 256)), 320).astype(int) + 1).tolist()
    wide = [make_group(f"p{i}", [2 + i] * 48, lengths[8 * i : 8 * i + 8], first_ticket=8 * i) for i in range(32)]
    ticks = [
        run(groups, lanes=2, slots=16, blocks=4000, prefill_tokens=512).scheduler.stats.ticks
        for groups in (wide, numbered(lengths, prompt=48))
    ]
    assert ticks[0] <= ticks[1]


def test_a_cancelled_row_gives_its_blocks_back():
    groups = numbered([50] * 8)
    driver = Driver(Budget(2, 2, 20, 2, (1, 1)))
    for group in groups:
        driver.scheduler.add(group)
    for group in (groups[0], groups[3], groups[7]):
        driver.scheduler.cancel(group.rows[0])
    driver.run()
    assert set(driver.finished) == {1, 2, 4, 5, 6}, "what waits is not even begun"


def test_a_cancelled_row_does_not_move():
    scheduler = Scheduler(Budget(2, 1, 20, 0, (1, 1)), prefill_tokens=128, fixed_shape=True)
    rows, lane = [], scheduler.lanes[0]
    for group in numbered([50] * 2):
        row = group.rows[0]
        group.alive, row.group, group.lane = 1, group, 0
        assert lane.pool.reserve(group.needs())
        row.blocks, row.tokens = [lane.pool.take()], [7]
        scheduler.start(row)
        rows.append(row)
    scheduler._fill_slots(lane)
    for row in rows:
        scheduler.cancel(row)
    job = scheduler.next_job()
    assert job.lane == 0 and job.rows[0] is rows[0] and not job.before


def test_what_a_decode_step_reads_has_few_holes():
    """Short rows leave holes under the blocks of long ones, which move down."""
    driver, spans = Driver(Budget(1, 16, 200, 0, (1,))), []
    execute = driver.execute

    def measured(job) -> None:
        if isinstance(job, Decode):
            blocks = [block for row in filter(None, job.rows) for block in row.blocks]
            spans.append((max(blocks) + 1, len(blocks)))
        execute(job)

    driver.execute = measured
    for group in numbered([300 if index % 8 == 7 else 20 for index in range(48)], prompt=70):
        driver.scheduler.add(group)
    driver.run()
    assert sum(span for span, _ in spans) <= 1.2 * sum(count for _, count in spans)
