"""Samples as token batches: in which order they come, which of them share a row, how long a row is.

Axes: B rows, S tokens of a row, N sequences of the batch, M samples. Every rank knows every global batch, so the order
of samples depends on the data and the seed alone, never on TP, PP or DP.
"""

from __future__ import annotations

import hashlib
import heapq
from typing import Any, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nemo_sdg.config import Training
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.training.samples import Sample
from nemo_sdg.training.widths import padded


def layout(settings: Training, mesh: Mesh, seed: int, virtual_stages: int = 1) -> dict[str, Any]:
    """How a fit's rows are laid out on these ranks: what `GlobalBatches` is told besides the samples."""
    # Virtual stages take turns over as many micro batches as there are stages.
    unit = settings.micro_batch_size * mesh.dp * (mesh.pp if virtual_stages > 1 else 1)
    return {
        "steps": settings.steps,
        "global_batch_size": settings.global_batch_size,
        "seed": seed,
        "unit": unit,
        "padded_together": unit if mesh.pp == 1 else None,
    }


class GlobalBatches(Dataset):
    """Rows of `steps` global batches, one after the other; an index is a row.

    A row holds one sample, or, where they are packed, as many as fit. Each epoch is a permutation of all samples of its
    own. Within a global batch, whose order has no meaning, rows are sorted by length, so that those which are padded
    together are about equally long.

    Args:
        global_batch_size: samples of a step.
        unit: a step has a multiple of this many rows: those of one micro batch of all replicas.
        padded_together: rows that are padded to one length; the whole step where a pipeline wants one.
        packed_sequence_size: tokens of a packed row; None gives each sample a row of its own.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        steps: int,
        global_batch_size: int,
        seed: int,
        unit: int = 1,
        padded_together: int | None = None,
        packed_sequence_size: int | None = None,
    ) -> None:
        self.samples = samples
        epochs = -(-steps * global_batch_size // len(samples))
        order = torch.cat([_shuffle(len(samples), seed, epoch) for epoch in range(epochs)]).tolist()
        self.batches = [order[i * global_batch_size : (i + 1) * global_batch_size] for i in range(steps)]
        """The samples of each step, in their order."""
        size_of = [sample.num_tokens for sample in samples]
        self.step_tokens = [sum(size_of[i] for i in batch) for batch in self.batches]
        """Tokens of each step's samples, without padding."""
        self.num_tokens = sum(self.step_tokens)
        """Of all steps."""
        if packed_sequence_size is None:
            rows = [[(i,) for i in batch] for batch in self.batches]
        else:
            rows = _pack(self.batches, size_of, packed_sequence_size, unit)
        self.rows_per_step = len(rows[0])
        lengths = [sorted((sum(size_of[i] for i in row), n) for n, row in enumerate(step)) for step in rows]
        self.rows = [step[n] for step, by_length in zip(rows, lengths) for _, n in by_length]
        """The samples in each row."""
        self.padded_together = padded_together or self.rows_per_step
        ascending = [length for step in lengths for length, _ in step]
        self.widths = _padded(ascending, self.padded_together)
        """Tokens that each group of rows is padded to."""
        self.step_widths = _padded(ascending, self.rows_per_step)
        """The same for each whole step."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        """One micro batch; all its rows are padded together."""
        width = self.widths[rows[0] // self.padded_together]
        return collate([[self.samples[i] for i in self.rows[row]] for row in rows], width)


def collate(rows: Sequence[Sequence[Sample]], width: int) -> dict[str, Any]:
    """The batch of these rows of samples, padded on the right to `width` tokens.

    Returns:
        tokens, position_ids: int64 [B, S]; positions begin at 0 in each sequence.
        sizes: by row the tokens of its sequences (a tuple of tuples of int); all else is told in the order of rows,
            their samples, and those' sequences.
        sequence_ids: which of the N sequences a token belongs to, -1 for padding, int64 [B, S].
        last: row and position of the last token of each sequence, int64 [N, 2].
        labels: where samples have them, the next token, -1 where it is not in the loss, int64 [B, S].
        targets: where samples have them, [M, ...].
        lines: where each sample stands in its file, int64 [M].
    """
    samples = [sample for row in rows for sample in row]
    batch: dict[str, Any] = {
        "sizes": tuple(tuple(len(tokens) for sample in row for tokens in sample.sequences) for row in rows),
        "tokens": _filled(rows, width, 0, lambda sample: sample.sequences),
        "position_ids": _filled(rows, width, 0, lambda sample: [torch.arange(len(x)) for x in sample.sequences]),
        "lines": torch.tensor([sample.line for sample in samples], dtype=torch.int64),
    }
    sequence_ids_BS = torch.full((len(rows), width), -1, dtype=torch.int64)
    last, count = [], 0
    for row, sizes in enumerate(batch["sizes"]):
        end = 0
        for size in sizes:
            sequence_ids_BS[row, end : end + size] = count
            end, count = end + size, count + 1
            last.append((row, end - 1))
    batch |= {"sequence_ids": sequence_ids_BS, "last": torch.tensor(last, dtype=torch.int64).view(-1, 2)}
    if samples and samples[0].labels:
        batch["labels"] = _filled(rows, width, -1, lambda sample: sample.labels)
    if samples and samples[0].targets is not None:
        batch["targets"] = torch.stack([sample.targets for sample in samples])
    return batch


def _filled(rows: Sequence[Sequence[Sample]], width: int, padding: int, parts: Any) -> Tensor:
    filled_BS = torch.full((len(rows), width), padding, dtype=torch.int64)
    for row_S, row in zip(filled_BS, rows):
        if row:
            values = torch.cat([values for sample in row for values in parts(sample)])
            row_S[: len(values)] = values
    return filled_BS


def _pack(batches: list[list[int]], size_of: list[int], limit: int, unit: int) -> list[list[tuple[int, ...]]]:
    """The rows of each step: in all of them as many, the fewest that hold its samples within `limit` tokens each.

    Longest first, each into the row that is shortest yet, so that rows end up about equally long and padding is rare
    (Graham, Bounds on multiprocessing timing anomalies, 1969).
    """
    count = max(-(-_rows_needed([size_of[i] for i in batch], limit) // unit) * unit for batch in batches)
    return [_into(count, batch, size_of) for batch in batches]


def _rows_needed(sizes: list[int], limit: int) -> int:
    count = max(1, -(-sum(sizes) // limit))
    while count < len(sizes):
        rows = _into(count, list(range(len(sizes))), sizes)
        if max(sum(sizes[i] for i in row) for row in rows) <= limit:
            break
        count += 1
    return count


def _into(count: int, batch: list[int], size_of: list[int]) -> list[tuple[int, ...]]:
    rows: list[list[int]] = [[] for _ in range(count)]
    shortest = [(0, row) for row in range(count)]
    for sample in sorted(batch, key=lambda i: -size_of[i]):
        length, row = shortest[0]
        rows[row].append(sample)
        heapq.heapreplace(shortest, (length + size_of[sample], row))
    return [tuple(row) for row in rows]


def _padded(lengths: list[int], together: int) -> list[int]:
    groups = [lengths[i : i + together] for i in range(0, len(lengths), together)]
    return [padded(max(group)) for group in groups]


def _shuffle(count: int, seed: int, epoch: int) -> Tensor:
    key = int.from_bytes(hashlib.sha256(f"order\x00{seed}\x00{epoch}".encode()).digest()[:7], "little")
    return torch.randperm(count, generator=torch.Generator().manual_seed(key))
