"""Huge pages for memory that is about to be filled: the kernel then clears and maps 2 MiB at a time, not 4 KiB."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np

_HUGE = 2 << 20


def prefer_huge_pages(memory: np.ndarray) -> None:
    """Advise the kernel, where it can be told (Linux), for the whole huge pages inside of `memory`.

    numpy does this for its own arrays; torch's allocator does not.
    """
    start = -(-memory.ctypes.data // _HUGE) * _HUGE
    length = (memory.ctypes.data + memory.nbytes) // _HUGE * _HUGE - start
    if length > 0 and sys.platform.startswith("linux"):
        # A hint: where the kernel has no huge pages it refuses, and nothing changes.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
