"""The sums of a folder, made by all ranks."""

from __future__ import annotations

import hashlib
import time

import pytest
from ranks import run_ranks

from nemo_sdg.parallel import sums


def made(mesh, folder, blind, seconds):
    """The sums, and how many files this rank has read; the second rank may see no file, and each may take long."""
    read = []
    honest = sums.sha256_of

    def slow(file):
        read.append(file)
        time.sleep(seconds)
        return honest(file)

    sums.sha256_of = slow
    return sums.sums_over_ranks(folder / "not here" if blind and not mesh.writer else folder, mesh), len(read)


@pytest.mark.parametrize("blind, seconds", [(False, 0.0), (True, 0.0), (True, 1.1)])
def test_each_file_is_read_once_and_what_only_the_writer_sees_by_the_writer(tmp_path, blind, seconds):
    """Also when that takes longer than the timeout."""
    (tmp_path / "weights").mkdir()
    texts = {f"weights/{i}": b"x" * i for i in range(5)} | {"training.json": b"{}", "SHA256SUMS": b"old"}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    del texts["SHA256SUMS"]
    expected = {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}
    found = run_ranks(made, tmp_path, blind, seconds, dp=2, timeout_s=2)
    assert [told for told, _ in found] == [expected, expected]
    assert [count for _, count in found] == ([6, 0] if blind else [3, 3])
