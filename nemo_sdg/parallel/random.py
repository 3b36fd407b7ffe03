"""Random streams that belong to rows, not to ranks.

The numbers that choose the tokens of a response depend on (run seed, round, prompt id, sample index,
position) alone, so neighbours in the batch, the order of arrival, the number of ranks and restarts cannot change them.
Philox is a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011):
the row is the key, the position is the counter.
"""

from __future__ import annotations

import hashlib

import numpy as np


def row_uniforms(seed: int, prompt_id: str, sample: int, count: int, round: int = 0) -> np.ndarray:
    """Uniform numbers in [0, 1) for positions 0 to `count` - 1 of one response, float64 [count].

    A longer stream begins with the shorter one.
    """
    name = f"{seed}\x00{prompt_id}\x00{sample}" + (f"\x00round {round}" if round else "")
    key = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest(), "little")
    raw = np.random.Philox(key=key).random_raw(count)
    return (raw >> np.uint64(11)) * 2.0**-53
