"""Samples as batches: in which order they come, which share a row, how rows are padded."""

from __future__ import annotations

import pytest
import torch

from nemo_sdg.training import batches as module
from nemo_sdg.training.batches import GlobalBatches, collate
from nemo_sdg.training.samples import Sample


def samples(count: int) -> list[Sample]:
    return [Sample((torch.full((5 + i,), i),), labels=(torch.full((5 + i,), i),), line=i + 1) for i in range(count)]


def batches(count: int = 10, **changes) -> GlobalBatches:
    return GlobalBatches(samples(count), **{"steps": 5, "global_batch_size": 4, "seed": 1, **changes})


def order(made: GlobalBatches) -> list[int]:
    return [i for batch in made.batches for i in batch]


def test_each_epoch_holds_every_row_once_in_its_own_order():
    drawn = order(batches())
    assert len(drawn) == 20
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10)) and drawn[:10] != drawn[10:]
    assert order(batches(seed=2)) != drawn and order(batches()) == drawn


def test_a_global_batch_is_the_same_whatever_is_padded_together():
    whole, pairs = batches(), batches(padded_together=2)
    assert whole.rows == pairs.rows and whole.step_widths == pairs.step_widths
    for step, batch in enumerate(whole.batches):
        rows = whole.rows[4 * step : 4 * step + 4]
        lengths = [5 + i for (i,) in rows]
        assert sorted(i for (i,) in rows) == sorted(batch) and lengths == sorted(lengths)
        assert whole.widths[step] == whole.step_widths[step] == -(-max(lengths) // 8) * 8
        assert pairs.widths[2 * step : 2 * step + 2] == [-(-max(pair) // 8) * 8 for pair in (lengths[:2], lengths[2:])]


def test_packed_rows_hold_the_same_batches_within_their_size():
    drawn = batches(30, steps=6, global_batch_size=12)
    packed = batches(30, steps=6, global_batch_size=12, packed_sequence_size=64)
    assert packed.batches == drawn.batches and packed.num_tokens == drawn.num_tokens
    assert len(packed.rows) == 6 * packed.rows_per_step
    for step, batch in enumerate(packed.batches):
        rows = packed.rows[step * packed.rows_per_step :][: packed.rows_per_step]
        assert sorted(i for row in rows for i in row) == sorted(batch)
        lengths = [sum(5 + i for i in row) for row in rows]
        assert max(lengths) <= 64 and packed.step_widths[step] == -(-max(lengths) // 8) * 8
    # One row fewer would not do for the largest of the steps.
    assert max(sum(5 + i for i in batch) for batch in packed.batches) > 64 * (packed.rows_per_step - 1)


@pytest.mark.parametrize("unit, rows", [(1, 3), (2, 4), (4, 4)])
def test_packed_rows_are_shared_out_evenly(unit, rows):
    """5 + 6 + ... + 16 = 126 tokens: three rows of 48 would do, but each replica needs as many as the others."""
    made = GlobalBatches(samples(12), steps=1, global_batch_size=12, seed=1, unit=unit, packed_sequence_size=48)
    assert made.rows_per_step == rows and len(made.rows) == rows
    lengths = [sum(5 + i for i in row) for row in made.rows]
    assert max(lengths) - min(lengths) <= 16 and sum(lengths) == made.num_tokens


def test_a_sample_longer_than_a_packed_row_has_one_of_its_own():
    made = GlobalBatches(samples(4), steps=1, global_batch_size=4, seed=1, packed_sequence_size=7)
    assert sorted(made.rows) == [(0,), (1,), (2,), (3,)]


def test_padding_is_in_no_loss():
    made = batches()
    batch = made.__getitems__([0, 1])
    for row, (tokens_S, labels_S, ids_S, (length,)) in enumerate(
        zip(batch["tokens"], batch["labels"], batch["sequence_ids"], batch["sizes"])
    ):
        assert (labels_S[length:] == -1).all() and (tokens_S[length:] == 0).all() and (labels_S[:length] >= 0).all()
        assert (ids_S[:length] == row).all() and (ids_S[length:] == -1).all()
    assert batch["lines"].tolist() == [i + 1 for row in made.rows[:2] for i in row]


def test_sequences_that_share_a_row():
    tokens = [torch.tensor(x) for x in ([1, 2, 3], [4, 5], [6], [7, 8])]
    pair = Sample((tokens[0], tokens[1]), targets=torch.tensor([2.0]), line=4)
    others = [Sample((tokens[i],), targets=torch.tensor([float(i)]), line=i) for i in (2, 3)]
    batch = collate([[pair, others[0]], [], [others[1]]], 8)
    assert batch["sizes"] == ((3, 2, 1), (), (2,))
    assert batch["tokens"].tolist() == [[1, 2, 3, 4, 5, 6, 0, 0], [0] * 8, [7, 8] + [0] * 6]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 0], [0] * 8, [0, 1] + [0] * 6]
    assert batch["sequence_ids"].tolist() == [[0, 0, 0, 1, 1, 2, -1, -1], [-1] * 8, [3, 3] + [-1] * 6]
    assert batch["last"].tolist() == [[0, 2], [0, 4], [0, 5], [2, 1]]
    assert batch["targets"].tolist() == [[2.0], [2.0], [3.0]] and batch["lines"].tolist() == [4, 2, 3]
    assert "labels" not in batch


def test_epochs_are_shuffled_apart():
    first, second = module._shuffle(10, 1, 0).tolist(), module._shuffle(10, 1, 1).tolist()
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
