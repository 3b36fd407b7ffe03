"""The reader: the right bytes and no others, from any layout of pieces, and one clear error for whatever goes wrong."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_sdg.checkpoints import reading
from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.names import architecture, region
from nemo_sdg.checkpoints.reading import RAW, Box, Reading, boxes, read_array, read_boxes, runs
from nemo_sdg.checkpoints.survey import extents
from nemo_sdg.checkpoints.tensors import ITEM_BYTES, Piece, StoredTensor
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.shapes import sizes

INFINITY = {"bf16": 0x7F80, "fp16": 0x7C00, "fp32": 0x7F800000, "fp64": 0x7FF0000000000000}


def random_bits(shape, dtype, seed=0):
    """Finite values of both signs."""
    raw = np.random.default_rng(seed).integers(0, INFINITY[dtype], shape, dtype=RAW[dtype])
    sign = np.random.default_rng(seed + 1).integers(0, 2, shape, dtype=RAW[dtype])
    return raw | sign << np.array(8 * raw.itemsize - 1, dtype=raw.dtype)


def store(folder, truth, grid, dtype, *, stacked, one_file=False, before=0, key="model.k"):
    """Write a tensor as a grid of dense blocks; those at the edge stick out. All in one file, or a file each."""
    by_layer: dict = {}
    every = bytearray(b"\xff" * before)
    for index in itertools.product(*[range(-(-n // step)) for n, step in zip(truth.shape, grid)]):
        origin = tuple(i * step for i, step in zip(index, grid))
        part = truth[tuple(slice(a, a + step) for a, step in zip(origin, grid))]
        # What sticks out is not a number: it must never be looked at.
        block = np.pad(
            part, [(0, n - have) for n, have in zip(grid, part.shape)], constant_values=np.iinfo(part.dtype).max
        )
        if one_file:
            piece = Piece(folder / "all", len(every), origin, tuple(grid))
            every += block.tobytes()
        else:
            name = ".".join(map(str, index))
            piece = Piece(folder / name, before, origin, tuple(grid), before + block.nbytes)
            (folder / name).write_bytes(b"\xff" * before + block.tobytes())
        for layer in range(origin[0], min(origin[0] + grid[0], truth.shape[0])) if stacked else (None,):
            by_layer[layer] = (*by_layer.get(layer, ()), piece)
    if one_file:
        (folder / "all").write_bytes(every)
    return StoredTensor(key, truth.shape, dtype, folder, by_layer)


@dataclass(frozen=True)
class Case:
    shape: tuple
    grid: tuple
    dtype: str
    stacked: bool
    one_file: bool
    before: int
    box: tuple
    layer: int | None
    threads: int
    block_bytes: int
    straight: bool


@st.composite
def cases(draw):
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    stacked = len(shape) > 1 and draw(st.booleans())
    box = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        box.append(slice(start, draw(st.integers(start + 1, n)) if draw(st.booleans()) else n))
    layer = draw(st.integers(0, shape[0] - 1)) if stacked else None
    if stacked:
        box[0] = slice(layer, layer + 1)
    return Case(
        shape, tuple(draw(st.integers(1, n + 2)) for n in shape), draw(st.sampled_from(sorted(RAW))), stacked,
        draw(st.booleans()), draw(st.integers(0, 11)), tuple(box), layer, draw(st.integers(1, 3)),
        draw(st.integers(1, 64)), draw(st.booleans()),
    )  # fmt: skip


def taker(out):
    """Takes rows as a model of another dtype would."""

    def put(raw, first, step):
        flat = out.reshape(-1)
        for number, row in enumerate(raw):
            flat[first + number * step : first + number * step + len(row)] = row

    return put


@settings(max_examples=300, deadline=None)
@given(cases())
def test_any_box_of_any_layout(case):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth = random_bits(case.shape, case.dtype)
        tensor = store(
            folder, truth, case.grid, case.dtype, stacked=case.stacked, one_file=case.one_file, before=case.before
        )
        wanted = truth[case.box]
        out = np.zeros(wanted.shape, wanted.dtype)
        into = out.reshape(-1).view(np.uint8) if case.straight else taker(out)
        seen = read_boxes(
            Files(folder), [Box(tensor, case.box, case.layer, into)], Reading(ranges=[]), threads=case.threads,
            block_bytes=case.block_bytes,
        )  # fmt: skip
        np.testing.assert_array_equal(out, wanted)
        assert seen.num_bytes == wanted.nbytes
        # What was read is what `runs` says, and each byte of it once.
        planned = [run for run in runs(tensor, case.box, case.layer)]
        expected = Counter((run.file, byte) for run in planned for at, n in run.ranges() for byte in range(at, at + n))
        assert Counter((file, byte) for file, at, n in seen.ranges for byte in range(at, at + n)) == expected
        assert set(expected.values()) == {1} and len(expected) == wanted.nbytes
        assert seen.files == {run.file for run in planned}
        again = read_array(Files(folder), tensor, case.box, case.layer)
        np.testing.assert_array_equal(again, wanted[0] if case.stacked else wanted)


def test_runs_are_as_few_as_can_be():
    def one(shape, piece_shape, box, layer=None, origin=None):
        piece = Piece(Path("f"), 100, origin or (0,) * len(shape), piece_shape)
        found = list(runs(StoredTensor("k", shape, "bf16", "f", {layer: (piece,)}), box, layer))
        assert len(found) == 1
        return tuple(found[0][1:])

    whole = (slice(0, 6), slice(0, 4))
    assert one((6, 4), (6, 4), whole) == (100, 48, 48, 1, 0, 48), "the whole piece is one stretch"
    assert one((6, 4), (6, 4), (slice(2, 5), slice(0, 4))) == (116, 24, 24, 1, 0, 24), "so are whole rows"
    assert one((6, 4), (6, 4), (slice(0, 6), slice(2, 4))) == (104, 4, 8, 6, 0, 4), "columns: rows apart in the file"
    assert one((6, 4), (6, 2), whole, origin=(0, 2)) == (100, 4, 4, 6, 4, 8), "rows apart in the box alone"
    layer = (slice(3, 4), slice(0, 6), slice(0, 4))
    assert one((5, 6, 4), (5, 6, 4), layer, 3) == (100 + 3 * 48, 48, 48, 1, 0, 48), "one layer of several in a piece"
    assert one((4, 6, 8), (2, 6, 8), (slice(0, 2), slice(0, 6), slice(4, 6))) == (108, 4, 16, 12, 0, 4), "axes join"


def test_axes_that_go_on_in_the_file_but_not_in_the_box():
    piece = Piece(Path("f"), 0, (0, 0, 0), (4, 3, 8))
    tensor = StoredTensor("k", (4, 6, 8), "bf16", "f", {None: (piece,)})
    found = list(runs(tensor, (slice(0, 4), slice(0, 6), slice(4, 6)), None))
    assert [tuple(run[1:]) for run in found] == [(8 + 48 * i, 4, 16, 3, 24 * i, 4) for i in range(4)]


SHAPE = replace(
    sizes()["tiny"], num_layers=3, hidden_size=16, ffn_hidden_size=24, num_attention_heads=8, num_query_groups=4,
    kv_channels=4, vocab_size=29,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from([1, 2, 4]), st.integers(1, 3), st.booleans())
def test_the_ranks_of_any_grid_read_every_byte_once(data, tp, pp, one_file):
    """No file is there: the ranges follow from the metadata alone."""
    stages = np.array_split(np.arange(SHAPE.num_layers), pp)
    item, folder = ITEM_BYTES["fp32"], Path("nowhere")
    for key, place in architecture(SHAPE).items():
        grid = tuple(data.draw(st.integers(max(1, n // 4), n + 3)) for n in place.shape)
        size, pieces, expected = math.prod(grid) * item, [], {}
        for number, index in enumerate(itertools.product(*[range(-(-n // g)) for n, g in zip(place.shape, grid)])):
            origin = tuple(i * step for i, step in zip(index, grid))
            inside = np.zeros(grid, np.uint32)  # ones where the piece holds elements of the tensor
            inside[tuple(slice(0, n - at) for n, at in zip(place.shape, origin))] = 0x01010101
            piece = Piece(folder / ("all" if one_file else str(number)), number * size * one_file + 7, origin, grid)
            pieces.append(piece)
            before = expected.get(piece.file, np.zeros(7, np.uint8))
            expected[piece.file] = np.concatenate([before, inside.ravel().view(np.uint8)])
        by_layer = {
            layer: tuple(p for p in pieces if layer is None or p.origin[0] <= layer < p.origin[0] + grid[0])
            for layer in place.layers
        }
        tensor = StoredTensor(key, place.shape, "fp32", folder, by_layer)
        read = {file: np.zeros_like(mask) for file, mask in expected.items()}
        for layers, tp_rank in itertools.product(stages if place.stacked else [[None]], range(tp)):
            for layer in layers:
                box = region(place, layer, tp, tp_rank)
                found = list(runs(tensor, box, layer))
                assert sum(run.num_bytes for run in found) == math.prod(s.stop - s.start for s in box) * item
                for run in found:
                    for at, n in run.ranges():
                        read[run.file][at : at + n] += 1
        for file, mask in expected.items():
            np.testing.assert_array_equal(read[file], mask if place.tp_axis is not None else tp * mask)


@pytest.fixture
def wide(tmp_path):
    """(bits, tensor of 40 x 64 in ten files)."""
    truth = random_bits((40, 64), "bf16")
    return truth, store(tmp_path, truth, (8, 32), "bf16", stacked=False)


def whole(tensor, out):
    return Box(tensor, tuple(slice(0, n) for n in tensor.shape), None, out.reshape(-1).view(np.uint8))


def test_the_system_calls_are_the_planned_ranges(wide, monkeypatch):
    truth, tensor = wide
    asked, real = [], os.preadv

    def watched(descriptor, buffers, offset):
        count = real(descriptor, buffers, offset)
        asked.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")), offset, count))
        return count

    monkeypatch.setattr(os, "preadv", watched)
    box = (slice(4, 36), slice(48, 64))
    out = np.zeros((32, 16), np.uint16)
    read_boxes(Files(tensor.where), [Box(tensor, box, None, out.reshape(-1).view(np.uint8))], threads=3)
    np.testing.assert_array_equal(out, truth[box])
    assert sorted(asked) == sorted((run.file, *at) for run in runs(tensor, box, None) for at in run.ranges())


def test_each_file_is_opened_once_and_few_at_a_time(wide):
    truth, tensor = wide
    opened, held, most, lock = [], [0], [0], threading.Lock()

    class Watched(Files):
        def open(self, file):
            with lock:
                opened.append(file)
                most[0] = max(most[0], len(os.listdir("/proc/self/fd")) - held[0])
            return super().open(file)

    out = np.zeros_like(truth)
    held[0] = len(os.listdir("/proc/self/fd"))
    seen = read_boxes(Watched(tensor.where), [whole(tensor, out)], threads=3, block_bytes=64)
    np.testing.assert_array_equal(out, truth)
    assert len(opened) == 10 and seen.files == set(opened)
    assert most[0] <= 4
    assert len(os.listdir("/proc/self/fd")) == held[0], "a file was left open"


@pytest.mark.parametrize("least", [1, 3, 4000])
@pytest.mark.parametrize("straight", [True, False])
def test_reads_that_return_less_are_continued(wide, monkeypatch, least, straight):
    truth, tensor = wide
    real = os.preadv

    def short(descriptor, buffers, offset):
        left, some = least, []
        for buffer in buffers:
            some.append(buffer[:left])
            left -= len(some[-1])
            if not left:
                break
        return real(descriptor, some, offset)

    monkeypatch.setattr(os, "preadv", short)
    out = np.zeros_like(truth)
    box = whole(tensor, out)
    read_boxes(Files(tensor.where), [box if straight else box._replace(into=taker(out))], threads=2)
    np.testing.assert_array_equal(out, truth)


def test_more_rows_than_one_system_call_takes(tmp_path):
    truth = random_bits((3000, 6), "fp16")
    tensor = store(tmp_path, truth, (3000, 3), "fp16", stacked=False)
    out = np.zeros_like(truth)
    read_boxes(Files(tmp_path), [whole(tensor, out)])
    np.testing.assert_array_equal(out, truth)


SPECIAL = {
    "inf": lambda top, sign: top,
    "-inf": lambda top, sign: top | sign,
    "nan": lambda top, sign: top | top >> 1 | 1,
    "-nan": lambda top, sign: sign | top | top >> 1 | 1,
    "smallest nan": lambda top, sign: top | 1,
    "every bit": lambda top, sign: 2 * sign - 1,
}


@pytest.mark.parametrize("dtype", sorted(RAW))
@pytest.mark.parametrize("name", SPECIAL)
def test_what_is_not_finite_is_refused_by_name(tmp_path, dtype, name):
    item = ITEM_BYTES[dtype]
    sign = 1 << 8 * item - 1
    truth = random_bits((12, 10), dtype)
    truth[0, 0], truth[11, 9] = INFINITY[dtype] - 1, INFINITY[dtype] - 1 | sign  # the largest finite ones
    for where, straight, grid in itertools.product(
        [(0, 0), (11, 9), (5, 4)], (True, False), [(12, 10), (12, 5), (5, 3)]
    ):
        tensor = store(tmp_path, truth, grid, dtype, stacked=False, key="model.the_name")
        out = np.zeros_like(truth)
        box = whole(tensor, out) if straight else whole(tensor, out)._replace(into=taker(out))
        read_boxes(Files(tmp_path), [box], threads=2, block_bytes=40)
        np.testing.assert_array_equal(out, truth)
        bad = truth.copy()
        bad[where] = SPECIAL[name](INFINITY[dtype], sign)
        tensor = store(tmp_path, bad, grid, dtype, stacked=False, key="model.the_name")
        with pytest.raises(CheckpointError, match="model.the_name holds values that are not finite"):
            read_boxes(Files(tmp_path), [box._replace(tensor=tensor)], threads=2, block_bytes=40)
        np.testing.assert_array_equal(read_array(Files(tmp_path), tensor, box.wanted, None), bad)


def test_the_first_of_many_errors_is_told(tmp_path):
    """Whichever thread meets one first: blocks are handed out in order, so the first bad one is always begun."""
    found = []
    for number in range(6):
        (tmp_path / str(number)).mkdir()
        bits = random_bits((64,), "bf16")
        bits[60 if number else 0] = 0x7F80 if number else 0
        found.append(store(tmp_path / str(number), bits, (8,), "bf16", stacked=False, key=f"model.k{number}"))
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(20):
        out = [np.zeros(64, np.uint16) for _ in found]
        with pytest.raises(CheckpointError, match="model.k1 holds"):
            read_boxes(Files(tmp_path), [whole(t, o) for t, o in zip(found, out)], threads=4, block_bytes=16)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_after_an_error_nothing_more_is_read(wide):
    truth, tensor = wide
    bad = truth.copy()
    bad[0, 0] = 0x7F80
    store(tensor.where, bad, (8, 32), "bf16", stacked=False)
    seen = Reading(ranges=[])
    with pytest.raises(CheckpointError, match="not finite"):
        read_boxes(Files(tensor.where), [whole(tensor, np.zeros_like(truth))], seen, threads=1, block_bytes=64)
    assert seen.ranges == [] and seen.files == {tensor.where / "0.0"}


def test_where_no_more_threads_can_be_started_the_others_end(wide, monkeypatch):
    truth, tensor = wide
    start, calls, before = threading.Thread.start, [], threading.active_count()

    def refusing(thread):
        calls.append(thread)
        if len(calls) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    def put(raw, first, step):
        time.sleep(0.02)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    seen = Reading()
    with pytest.raises(RuntimeError, match="start new thread"):
        box = Box(tensor, (slice(0, 40), slice(0, 64)), None, put)
        read_boxes(Files(tensor.where), [box], seen, threads=3, block_bytes=64)
    assert threading.active_count() == before and seen.num_bytes < truth.nbytes


def test_an_interrupt_ends_all_threads(wide):
    _, tensor = wide

    def put(raw, first, step):
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        read_boxes(
            Files(tensor.where), [Box(tensor, (slice(0, 40), slice(0, 64)), None, put)], threads=3, block_bytes=8
        )
    assert threading.active_count() == before


def test_files_that_are_missing_short_or_elsewhere(wide, tmp_path_factory):
    truth, tensor = wide
    chunk = tensor.where / "2.1"
    content = chunk.read_bytes()

    def refused():
        with pytest.raises(CheckpointError) as caught:
            read_boxes(Files(tensor.where), [whole(tensor, np.zeros_like(truth))], threads=2)
        assert caught.value.where == chunk
        return str(caught.value)

    chunk.write_bytes(content[:-1])
    assert "a chunk has the wrong size, found 511 bytes, expected 512 bytes" in refused()
    chunk.write_bytes(content + b"\0")
    assert "found 513 bytes" in refused()
    chunk.unlink()
    assert "a chunk is missing" in refused()
    outside = tmp_path_factory.mktemp("outside") / "2.1"
    outside.write_bytes(content)
    chunk.symlink_to(outside)
    assert "a link leads out of the checkpoint" in refused()
    chunk.unlink()
    os.mkfifo(chunk)
    assert "not a regular file" in refused()


def test_a_file_must_hold_its_last_piece(tmp_path):
    truth = random_bits((4, 4), "fp32")
    tensor = store(tmp_path, truth, (2, 4), "fp32", stacked=False, one_file=True, before=3)
    os.truncate(tmp_path / "all", 3 + 63)
    with pytest.raises(CheckpointError, match="found 66 bytes, expected at least 67 bytes"):
        read_boxes(Files(tmp_path), [whole(tensor, np.zeros_like(truth))])


def test_a_file_that_shrinks_while_it_is_read(wide, monkeypatch):
    truth, tensor = wide
    real = os.preadv

    def shrinking(descriptor, buffers, offset):
        os.truncate(tensor.where / "0.0", 100)
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", shrinking)
    with pytest.raises(CheckpointError, match="0.0: the file is cut short, found 100 bytes, expected 412 more"):
        read_boxes(Files(tensor.where), [whole(tensor, np.zeros_like(truth))], threads=1)


def test_a_disk_that_fails(wide, monkeypatch):
    truth, tensor = wide

    def failing(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(CheckpointError, match="0.0: the file cannot be read, found Input/output error"):
        read_boxes(Files(tensor.where), [whole(tensor, np.zeros_like(truth))], threads=2)


def test_a_file_that_may_not_be_opened(wide, monkeypatch):
    truth, tensor = wide
    real = os.open

    def locked(path, *rest, **named):
        if Path(path).name == "3.0":
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "open", locked)
    with pytest.raises(CheckpointError, match="3.0: the file cannot be read, found Permission denied"):
        read_boxes(Files(tensor.where), [whole(tensor, np.zeros_like(truth))], threads=2)


def test_the_size_that_files_must_have():
    def piece(file, offset, shape, size=None):
        return Piece(Path(file), offset, (0,) * len(shape), shape, size), "fp32"

    rows = [piece("a", 40, (3, 5)), piece("a", 0, (10,)), piece("b", 0, (4,), 16), piece("a", 100, (1,))]
    assert extents(rows) == {Path("a"): (None, 104), Path("b"): (16, 16)}
    assert extents(rows[::-1]) == extents(rows)


def test_pieces_with_a_gap_are_refused(wide):
    truth, tensor = wide
    gap = replace(tensor, by_layer={None: tensor.by_layer[None][:-1]})
    with pytest.raises(CheckpointError, match="model.k is not covered by its pieces, found 512 bytes too few"):
        read_boxes(Files(tensor.where), [whole(gap, np.zeros_like(truth))])
    twice = replace(tensor, by_layer={None: tensor.by_layer[None] + tensor.by_layer[None][:1]})
    with pytest.raises(CheckpointError, match="found 512 bytes too many"):
        read_boxes(Files(tensor.where), [whole(twice, np.zeros_like(truth))])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=3), st.integers(1, 300), st.sampled_from([2, 8]))
def test_boxes_follow_one_another_and_are_small(shape, at_most, item):
    where = np.arange(math.prod(n + 2 for n in shape)).reshape([n + 2 for n in shape])
    wanted = tuple(slice(1, n + 1) for n in shape)
    parts = list(boxes(wanted, item, at_most))
    assert all(where[part].size * item <= max(at_most, item) for part in parts)
    assert np.concatenate([where[part].ravel() for part in parts] or [[]]).tolist() == where[wanted].ravel().tolist()
    if parts and math.prod(shape) * item <= at_most:
        assert len(parts) == 1


def test_memory_is_used_again_from_box_to_box(wide):
    truth, tensor = wide
    out, seen = np.zeros((4, 64), np.uint16), []
    for part in boxes((slice(0, 40), slice(0, 64)), 2, 4 * 64 * 2):
        seen.append(read_array(Files(tensor.where), tensor, part, None, out=out).copy())
    np.testing.assert_array_equal(np.concatenate(seen), truth)
    with pytest.raises(AssertionError):
        read_array(Files(tensor.where), tensor, (slice(0, 4), slice(0, 64)), None, out=out.T)


def test_a_rank_takes_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
    for ranks, threads in (("1", 8), ("8", 8), ("32", 3), ("200", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert reading.default_threads() == threads
