"""What each rank will read of a checkpoint, from its metadata alone: byte ranges, files, and the proof of coverage.

The ranges are those that the loader executes (`checkpoints.runs`), so the plan cannot say one thing and
the loader do another.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nemo_sdg.checkpoints.names import TensorPlace, region
from nemo_sdg.checkpoints.runs import Run, runs
from nemo_sdg.checkpoints.tensors import ITEM_BYTES, Contents
from nemo_sdg.errors import CheckpointError


@dataclass
class RankReads:
    """What one rank of a replica reads."""

    tp_rank: int
    pp_rank: int
    runs: list[Run] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        return sum(run.num_bytes for run in self.runs)

    @property
    def files(self) -> set[Path]:
        return {run.file for run in self.runs}

    @property
    def num_ranges(self) -> int:
        """Contiguous ranges of bytes."""
        return sum(1 if run.stride == run.row_bytes else run.count for run in self.runs)


@dataclass(frozen=True)
class Loading:
    """What one replica reads to hold a model."""

    ranks: Sequence[RankReads]
    """pp-major: all TP ranks of the first stage come first."""
    num_bytes: int
    """Bytes of the tensors that the model has, each counted once."""
    copied_bytes: int
    """Of these, the bytes of tensors that every TP rank of a stage holds whole (norms)."""
    num_files: int

    def totals(self) -> tuple[str, str]:
        """(bytes, files)"""
        return f"{self.num_bytes:,}", f"{self.num_files:,}"

    def stage(self, pp_rank: int) -> tuple[int, int, int]:
        """(bytes, files, byte ranges) of the rank of a stage that reads most."""
        return max((rank.num_bytes, len(rank.files), rank.num_ranges) for rank in self.ranks if rank.pp_rank == pp_rank)

    def ranges(self) -> Iterator[dict[str, Any]]:
        """Each rank's reads: `count` rows of `bytes` bytes, the first at `offset`, one every `stride` bytes."""
        for rank in self.ranks:
            for run in rank.runs:
                yield {
                    "tp_rank": rank.tp_rank, "pp_rank": rank.pp_rank, "file": str(run.file), "offset": run.offset,
                    "bytes": run.row_bytes, "stride": run.stride, "count": run.count,
                }  # fmt: skip


def loading(contents: Contents, places: dict[str, TensorPlace], tp: int, stages: Sequence[Sequence[int]]) -> Loading:
    """The reads of all TP x PP ranks of one replica, with every byte accounted for.

    Args:
        places: the tensors that the model needs from the checkpoint.
        stages: the global layers that each pipeline stage holds.
    Raises:
        CheckpointError: a byte of a tensor would be read twice or by nobody, so the metadata contradict themselves.
    """
    ranks = [RankReads(tp_rank, pp_rank) for pp_rank in range(len(stages)) for tp_rank in range(tp)]
    once: dict[Path, list[Run]] = defaultdict(list)
    total = copied = 0
    for place in places.values():
        tensor = contents.tensors[place.key]
        size = math.prod(place.shape) * ITEM_BYTES[tensor.dtype]
        total += size
        copied += size if place.tp_axis is None else 0
        planned = 0
        for pp_rank, layer in _where(place, stages):
            for tp_rank in range(tp if place.tp_axis is not None else 1):
                found = list(runs(tensor, region(place, layer, tp, tp_rank), layer))
                planned += sum(run.num_bytes for run in found)
                for run in found:
                    once[run.file].append(run)
                holders = (tp_rank,) if place.tp_axis is not None else range(tp)
                for holder in holders:
                    ranks[pp_rank * tp + holder].runs.extend(found)
        if planned != size:
            raise CheckpointError(
                f"{place.key} is not covered by its pieces", where=tensor.where, found=f"{planned} bytes",
                expected=f"{size} bytes", way_out="download the checkpoint again",
            )  # fmt: skip
    for file, found in once.items():
        if not disjoint(found):
            raise CheckpointError(
                "two tensors claim the same bytes", where=file, way_out="download the checkpoint again"
            )
    return Loading(ranks, total, copied, len(once))


def _where(place: TensorPlace, stages: Sequence[Sequence[int]]) -> Iterator[tuple[int, int | None]]:
    """(pipeline stage, layer) of each part of a tensor."""
    if place.stage == "layers":
        for pp_rank, layers in enumerate(stages):
            yield from ((pp_rank, layer) for layer in layers)
    else:
        yield (0 if place.stage == "first" else len(stages) - 1), None


def disjoint(found: Iterable[Run]) -> bool:
    """Whether no byte of the file lies in two runs."""
    intervals = [(run.offset, run.offset + run.num_bytes) for run in found if run.stride == run.row_bytes]
    strided: dict[tuple[int, int], list[Run]] = defaultdict(list)
    for run in found:
        if run.stride != run.row_bytes:
            strided[run.stride, run.count].append(run)
    for (stride, count), group in strided.items():
        group.sort(key=lambda run: run.offset)
        begin = 0
        # Runs that start within one row lie side by side in the same rows: columns of one rectangle.
        while begin < len(group):
            first = group[begin].offset
            end = begin
            while end < len(group) and group[end].offset < first + stride:
                end += 1
            columns = [(run.offset, run.offset + run.row_bytes) for run in group[begin:end]]
            last = columns[-1][1]
            if any(a[1] > b[0] for a, b in zip(columns, columns[1:])) or last > first + stride:
                return False
            if last - first == stride and all(a[1] == b[0] for a, b in zip(columns, columns[1:])):
                intervals.append((first, first + stride * count))
            else:
                rows = np.arange(count)[:, None] * stride
                spans = (np.asarray(columns)[None] + rows[:, :, None]).reshape(-1, 2)
                intervals.extend(map(tuple, spans.tolist()))
            begin = end
    intervals.sort()
    return all(a[1] <= b[0] for a, b in zip(intervals, intervals[1:]))
