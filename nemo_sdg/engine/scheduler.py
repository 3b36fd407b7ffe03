"""What the model does next: which prompts go in, which rows decode, which blocks they use. Bookkeeping only, no torch.

Every rank of a replica runs this same code on the same requests and the same tokens, so all of them come to the same plan
without a message. With pipeline stages the rows are shared out over lanes, as many as there are stages: while one lane's
tokens are on their way back, the other lanes keep the stages busy.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from nemo_sdg.engine.blocks import BlockPool, PrefixStore
from nemo_sdg.engine.budget import BLOCK, FOURS, Budget, blocks_of
from nemo_sdg.engine.jobs import Copy, Decode, Group, Job, Prefill, Row, Stats, Unit
from nemo_sdg.engine.lanes import Lane

_LOOK_AHEAD = 32
"""Waiting prompts that are looked through for one that fills what is left of a forward pass."""


class Scheduler:
    def __init__(self, budget: Budget, *, prefill_tokens: int, fixed_shape: bool) -> None:
        self.lanes = [
            Lane(BlockPool(budget.blocks), PrefixStore(budget.blocks, budget.store), [None] * budget.slots)
            for _ in range(budget.lanes)
        ]
        self.waiting: deque[Group] = deque()
        self.stats = Stats(stages=budget.lanes)
        self._prefill_tokens, self._fixed_shape = prefill_tokens, fixed_shape
        self._turn = 0

    @property
    def idle(self) -> bool:
        return not self.waiting and not any(lane.held or lane.busy for lane in self.lanes)

    def add(self, group: Group) -> None:
        """A prompt with its responses. It fits a lane that is empty; `most_rows` says how many of them do."""
        group.alive = len(group.rows)
        for row in group.rows:
            row.group = group
        self.waiting.append(group)

    def most_rows(self, tokens: int, shared: int) -> int:
        """Responses of so many tokens at most that an empty lane can hold beside the blocks that they share."""
        return (self.lanes[0].pool.size - shared) // max(1, blocks_of(tokens) - shared)

    def cancel(self, row: Row) -> None:
        """Nobody waits for this row: it ends with the job that it is in, or where it stands in line."""
        row.cancelled = True
        if row.group.lane < 0 and all(other.cancelled for other in row.group.rows):
            self.waiting.remove(row.group)

    # What comes next.

    def next_job(self) -> Job | None:
        """The next forward pass; None if all that could be done waits for results that are under way."""
        job = self._prefill(starving=True) or self._decode() or self._prefill(starving=False)
        self.stats.ticks += job is not None
        return job

    def _prefill(self, *, starving: bool) -> Job | None:
        """Prompts for the lane that lacks most rows, and as many more as fill the forward pass.

        Args:
            starving: only if there is a slot for which no row is ready.
        """
        for lane in sorted(self.lanes, key=lambda lane: -lane.lacking):
            if starving and lane.lacking <= 0:
                break
            job = self._pack(self.lanes.index(lane), lane)
            if job.units:
                self.stats.prefill_steps += 1
                self.stats.prefill_tokens += len(job.token_ids)
                self.stats.padded_tokens += job.size - len(job.token_ids)
                return job
        return None

    def _pack(self, index: int, lane: Lane) -> Prefill:
        job = Prefill(index, self._prefill_tokens)
        for group in list(lane.prefilling):
            self._feed(job, lane, group)
        for group in list(islice(self.waiting, _LOOK_AHEAD)):
            room = job.size - len(job.token_ids)
            if not room or len(job.ends) == len(lane.slots) or lane.held >= 2 * len(lane.slots) + len(group.rows):
                break  # the other lanes want some too
            if min(BLOCK, len(group.prompt_ids)) > room:
                continue
            if not lane.pool.reserve(group.needs()):
                break  # it is first in line: what frees blocks comes to it
            self.waiting.remove(group)
            job.before += self._admit(index, lane, group)
            self._feed(job, lane, group)
        self._keep(job, lane)
        self._note_peak()
        if not self._fixed_shape:
            job.size = blocks_of(len(job.token_ids)) * BLOCK
        return job

    def _admit(self, index: int, lane: Lane, group: Group) -> list[Copy]:
        """Gives a prompt its blocks, and what the store has of it."""
        group.lane = index
        first = group.rows[0]
        group.shared = [lane.pool.take(shared=True) for _ in range(group.shared_blocks())]
        own = blocks_of(len(group.prompt_ids)) - len(group.shared)
        first.blocks = [lane.pool.take() for _ in range(own)]
        # The last token must go through the model: its logits are what the first answer token is drawn from.
        found = lane.store.find(group.names[: (len(group.prompt_ids) - 1) // BLOCK])
        group.done = len(found) * BLOCK
        self.stats.reused_tokens += group.done
        lane.prefilling.append(group)
        return [(index, kept, index, block) for kept, block in zip(found, group.shared + first.blocks)]

    def _feed(self, job: Prefill, lane: Lane, group: Group) -> None:
        """As many pieces of a prompt as there is room for."""
        table = (*group.shared, *group.rows[0].blocks)
        while group.done < len(group.prompt_ids) and len(job.ends) < len(lane.slots):
            offset, count, start = len(job.token_ids), group.next_unit(), group.done
            if count > job.size - offset:
                return
            job.units.append(Unit(offset, start, count, table[: blocks_of(start + count)]))
            job.token_ids += group.prompt_ids[start : start + count]
            group.done += count
        if group.done == len(group.prompt_ids):
            job.ends.append((len(job.token_ids) - 1, group))
            lane.prefilling.remove(group)
            lane.arriving += len(group.rows)
            if group.rows[0].blocks:  # each further response writes on in a copy of the last, partial block
                for row in group.rows[1:]:
                    row.blocks = [lane.pool.take()]
                    job.after.append((job.lane, table[-1], job.lane, row.blocks[0]))

    def _keep(self, job: Prefill, lane: Lane) -> None:
        """The whole blocks of the prompts that this job completes go into the store, for the jobs that follow."""
        for _, group in job.ends:
            for name, block in reversed(list(zip(group.names, (*group.shared, *group.rows[0].blocks)))):
                kept = lane.store.add(name)
                if kept is not None:
                    job.after.append((job.lane, block, job.lane, kept))

    def _decode(self) -> Job | None:
        moved = self._balance()
        for turn in range(len(self.lanes)):
            index = (self._turn + turn) % len(self.lanes)
            lane = self.lanes[index]
            if lane.busy:
                continue
            self._fill_slots(lane)
            if not lane.active:
                continue
            self._turn = index + 1
            rows = list(lane.slots)
            if not self._fixed_shape:  # in halves, so that there are few shapes
                rows = [row for row in rows if row is not None]
                size = len(lane.slots)
                while size >= 8 and size // 2 >= len(rows):
                    size //= 2
                rows += [None] * (size - len(rows))
            rows += [None] * (-len(rows) % FOURS)
            for row in filter(None, rows):
                if blocks_of(row.length) > len(row.group.shared) + len(row.blocks):
                    row.blocks.append(lane.pool.take())
            moved = moved + lane.compact(index, rows)
            self._note_peak()
            lane.busy = True
            self.stats.decode_steps += 1
            self.stats.decode_rows += lane.active
            return Decode(index, rows, moved)
        assert not moved, "rows were moved to a lane that does not run"
        return None

    def _fill_slots(self, lane: Lane) -> None:
        for slot, row in enumerate(lane.slots):
            while row is None and lane.ready:
                row = lane.ready.popleft()
                if row.cancelled:
                    self.release(row)
                    row = None
            lane.slots[slot] = row

    def _balance(self) -> list[Copy]:
        """Near the end of a run a lane may be empty while another still has rows: half of them move over."""
        if len(self.lanes) == 1 or self.waiting or any(lane.prefilling or lane.arriving for lane in self.lanes):
            return []
        free = [index for index, lane in enumerate(self.lanes) if not (lane.busy or lane.held)]
        full = max(range(len(self.lanes)), key=lambda index: -1 if self.lanes[index].busy else self.lanes[index].held)
        source = self.lanes[full]
        if not free or source.busy or source.held < 2:
            return []
        self._fill_slots(source)
        target, copies = self.lanes[free[0]], []
        # A cancelled row ends where it is: moved alone, it would leave the lane that it came to with nothing to run.
        rows = [row for row in source.slots if row is not None and not row.cancelled]
        # Whole groups: what they share moves once, and its readers stay together.
        groups = list(dict.fromkeys(row.group for row in rows))
        moving: list[Row] = []
        for group in groups:
            members = [row for row in rows if row.group is group]
            if group.alive == len(members) and len(moving) + len(members) <= max(len(rows) // 2, 1):
                if target.pool.reserve(group.shared_blocks() + sum(row.own_blocks() for row in members)):
                    moving += members
                    copies += self._move(group, members, full, free[0])
        for slot, row in enumerate(source.slots):
            if row in moving:
                source.slots[slot] = None
        target.ready.extend(moving)
        self.stats.moved_rows += len(moving)
        return copies

    def _move(self, group: Group, members: list[Row], source: int, target: int) -> list[Copy]:
        old, new, copies = self.lanes[source].pool, self.lanes[target].pool, []

        def over(blocks: list[int], *, shared: bool) -> list[int]:
            fresh = [new.take(shared=shared) for _ in blocks]
            copies.extend((source, block, target, taken) for block, taken in zip(blocks, fresh))
            for block in blocks:
                old.give(block)
            return fresh

        old.release(group.shared_blocks() + sum(row.own_blocks() for row in members))
        group.shared, group.lane = over(group.shared, shared=True), target
        for row in members:
            row.blocks = over(row.blocks, shared=False)
        return copies

    def _note_peak(self) -> None:
        self.stats.peak_blocks = max(self.stats.peak_blocks, sum(lane.pool.used for lane in self.lanes))

    # What became of a job.

    def arrived(self, group: Group) -> None:
        """The first tokens of a prompt's responses are known."""
        lane = self.lanes[group.lane]
        lane.arriving -= len(group.rows)

    def start(self, row: Row) -> None:
        """A row that goes on waits for a slot."""
        self.lanes[row.group.lane].ready.append(row)

    def decoded(self, job: Decode) -> None:
        self.lanes[job.lane].busy = False

    def release(self, row: Row) -> list[int]:
        """A row is over: its slot and its blocks are free again.

        Returns:
            The blocks, which hold what is not finite if the row was.
        """
        group = row.group
        lane = self.lanes[group.lane]
        if row in lane.slots:
            lane.slots[lane.slots.index(row)] = None
        freed = list(row.blocks)
        lane.pool.release(row.own_blocks())
        group.alive -= 1
        if not group.alive:
            freed += group.shared
            lane.pool.release(group.shared_blocks())
            group.shared = []
        for block in freed:
            lane.pool.give(block)
        row.blocks = []
        return freed
