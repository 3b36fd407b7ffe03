"""A 340B rank loads its shard: what it reads and holds (asserted), and how fast beside a plain read (printed).

The folder has the true dimensions of a layer and of the vocabulary, two layers, and files without content: their
zeros come out of the page cache at the speed of real bytes, and take no disk.
"""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from measured import Peak
from ranks import run_ranks

from nemo_sdg.checkpoints.description import write_description
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import fill
from nemo_sdg.checkpoints.names import tensor_places
from nemo_sdg.checkpoints.reading import Reading, default_threads
from nemo_sdg.checkpoints.release_writer import array_header, write_metadata
from nemo_sdg.engine.load import build_chunks
from nemo_sdg.models.shapes import sizes
from nemo_sdg.parallel.lone import lone_rank
from nemo_sdg.parallel.topology import Grid

TP = 8
SHAPE = replace(sizes()["nemotron4_340b"], num_layers=2)
ROUNDS = 4
_BLOCK = 8 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """(released folder cut for TP8, bytes of its largest chunk)."""
    path = tmp_path_factory.mktemp("340b")
    largest = 0
    for key, place in tensor_places(SHAPE, reward=False).items():
        array = path / "model_weights" / key
        array.mkdir(parents=True)
        header = array_header(place, TP)
        (array / ".zarray").write_text(json.dumps(header))
        size = 2 * math.prod(header["chunks"])
        largest = max(largest, size)
        for index in np.ndindex(*[-(-n // step) for n, step in zip(header["shape"], header["chunks"])]):
            with open(array / ".".join(map(str, index)), "wb") as file:
                file.truncate(size)
    write_metadata(path)
    write_description(path, SHAPE, b"", reward=False, tp=TP)
    return path, largest


def load(_, path, tp_rank, watched):
    """Load one rank's model; what was read, and how much memory it took (watched) or how long."""
    with lone_rank(Grid(TP), tp_rank) as mesh:
        (model,) = build_chunks(SHAPE, mesh, dtype=torch.bfloat16)
        opened = ModelFolder.open(path)
        assert opened.shape.hidden_size == SHAPE.hidden_size  # the metadata are read before the clock starts
        if watched:
            peak = Peak()
            peak.start()
        began, used = time.perf_counter(), processor()
        reading = fill(model, opened, mesh, reading=Reading(ranges=[] if watched else None))
        took, used = time.perf_counter() - began, processor() - used
        return {
            "grown": peak.growth() if watched else None,
            "took": (took, used),
            "bytes": reading.num_bytes,
            "ranges": reading.ranges,
            "shard": sum(p.numel() * p.element_size() for p in model.parameters()),
        }


def plain_read(_, ranges):
    """Seconds for the same bytes into fresh memory with as many threads: by the clock, and of the processors."""
    began, used = time.perf_counter(), processor()
    memory = [np.empty(length, np.uint8) for _, _, length in ranges]
    files = {file: os.open(file, os.O_RDONLY) for file, _, _ in ranges}
    blocks = iter(
        [
            (files[file], offset + start, part[start : start + _BLOCK])
            for (file, offset, length), part in zip(ranges, memory)
            for start in range(0, length, _BLOCK)
        ]
    )
    lock = threading.Lock()

    def work():
        while True:
            with lock:
                file, offset, part = next(blocks, (None, None, None))
            if file is None:
                return
            assert os.preadv(file, [part.data], offset) == part.nbytes

    threads = [threading.Thread(target=work) for _ in range(default_threads())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, processor() - used


def processor() -> float:
    """Seconds that the processors have spent on this process: what they spend on others does not count."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def joined(ranges):
    """Neighbouring ranges of a file as one."""
    whole = []
    for file, offset, length in sorted(ranges):
        if whole and whole[-1][0] == file and whole[-1][1] + whole[-1][2] == offset:
            whole[-1][2] += length
        else:
            whole.append([file, offset, length])
    return [tuple(found) for found in whole]


def forget(ranges):
    """Give the page cache of the files back: all eight shards would not fit."""
    for file in {file for file, _, _ in ranges}:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def test_each_rank_of_a_340b_folder(folder):
    path, largest = folder
    print(f"\n340B layers, TP{TP}, two layers, bf16, {default_threads()} threads, warm page cache")
    ratios = []
    for rank in range(TP):
        seen = run_ranks(load, path, rank, True, timeout_s=600)[0]
        shard, ranges = seen["shard"], joined(seen["ranges"])
        assert seen["bytes"] == sum(length for _, _, length in ranges) <= 1.01 * shard
        assert seen["grown"] <= 1.05 * (shard + largest)
        assert seen["grown"] >= 0.99 * shard, "the parameters were in memory before, so the growth says nothing"
        rounds = []
        for number in range(ROUNDS):
            # In turn the first: whoever comes second may find the memory in another state.
            for what in ("plain", "load")[:: 1 if number % 2 == 0 else -1]:
                if what == "plain":
                    plain = run_ranks(plain_read, ranges, timeout_s=600)[0]
                else:
                    own = run_ranks(load, path, rank, False, timeout_s=600)[0]["took"]
            rounds.append((shard / own[0] / 1e9, plain[0] / own[0], plain[1] / own[1]))
        ratios += rounds
        rate, clock, spent = (statistics.median(column) for column in zip(*rounds))
        files = {file for file, _, _ in ranges}
        print(
            f"  rank {rank}: {seen['bytes'] / shard:.4f} x its shard of {shard / 1e9:.2f} GB read, {len(files)} files, "
            f"anonymous memory grew by {seen['grown'] / shard:.4f} shards; {rate:.2f} GB/s, "
            f"{clock:.2f} x a plain read ({spent:.2f} x by the processors' time)",
            flush=True,
        )
        forget(ranges)
    _, clock, spent = (statistics.median(column) for column in zip(*ratios))
    print(f"  median of {len(ratios)}: {clock:.2f} x the rate of a plain read ({spent:.2f} x by the processors' time)")
