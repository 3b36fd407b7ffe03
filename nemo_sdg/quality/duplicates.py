"""Rows that say almost the same as a better one: MinHash finds candidates, their shingles decide.

Two rows are near duplicates if the Jaccard similarity of the shingle sets of their responses is at or above the
threshold. A short response ("The answer is 5.") is right for many questions, so of rows whose response has fewer than
SHORT shingles the prompts must be as similar, too; a short and a long one are never near duplicates.

Signatures are rensa's R-MinHash, cut into bands (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4): rows
that agree in a whole band are candidates. Bands are as narrow as it takes for a pair at the threshold to be found with
a probability of RECALL. The shingles themselves wait in a scratch file until two rows have to be compared.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator

import numpy as np

from nemo_sdg.errors import StoreError
from nemo_sdg.quality.text import Tokens, shingles

SHORT = 50
RECALL = 0.995
PERMUTATIONS = 128
SEED = 1
_BATCH = 256
_OF_PROMPT = np.uint64(0xA5A5A5A5A5A5A5A5)
"""Sets the shingles of a prompt apart from the same ones in a response."""


def bands(threshold: float) -> tuple[int, int]:
    """(bands, values in each) with the widest bands that find a pair at the threshold with a probability of RECALL."""
    for width in range(PERMUTATIONS, 1, -1):
        count = PERMUTATIONS // width
        if 1 - (1 - threshold**width) ** count >= RECALL:
            return count, width
    return PERMUTATIONS, 1


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Shared members over all members of two sets without repetitions; 1 of two empty ones."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared) if len(one) or len(other) else 1.0


def signatures(sets: list[np.ndarray]) -> np.ndarray:
    """R-MinHash signatures of sets of hashes, one row each; of an empty set all values are the largest."""
    from rensa import RMinHash

    offsets = np.cumsum([0, *map(len, sets)], dtype=np.uint64)
    flat = np.concatenate([np.empty(0, np.uint64), *sets])
    made = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, PERMUTATIONS, SEED)
    return np.array(made.to_rows(), np.uint32).reshape(len(sets), PERMUTATIONS)


class NearDuplicates:
    """Takes every row once, in any order; then says of rows, best first, which better one each is like. More rows may
    come after that, to settle again.

    Memory is 20 bytes a row and 12 a band, of which there are at most 64 from a threshold of 0.3 on.
    """

    def __init__(self, threshold: float, n: int) -> None:
        self._threshold, self._n = threshold, n
        self._bands, self._width = bands(threshold)
        self._keys: list[np.ndarray] = []
        self._waiting: list[np.ndarray] = []
        self._lines: list[bytes] = []
        self._ends, self._sizes, self._asked = array("q", [0]), array("i"), array("i")
        self._scratch = tempfile.TemporaryFile(prefix="nemo-sdg-shingles-")

    def add(self, name: str, question: Tokens, response: Tokens) -> None:
        """The next row, by its id."""
        said = shingles(response, self._n)
        asked = shingles(question, self._n) ^ _OF_PROMPT if 0 < len(said) < SHORT else np.empty(0, np.uint64)
        both = np.concatenate([said, asked])
        line = both.tobytes() + name.encode()
        self._sizes.append(len(said))
        self._asked.append(len(asked))
        self._ends.append(self._ends[-1] + len(line))
        self._waiting.append(both)
        self._lines.append(line)
        if len(self._waiting) == _BATCH:
            self._flush()

    def settle(self, rows: np.ndarray) -> None:
        """Only these rows (by number) are to be compared, and none is kept yet."""
        self._flush()
        comparable = np.zeros(len(self._sizes), np.bool_)
        comparable[rows] = np.array(self._sizes, np.int32)[rows] > 0
        # The key of a band becomes the number of a bucket that holds at least two rows, or -1.
        self._buckets = np.full((len(comparable), self._bands), -1, np.int32)
        self._first: list[np.ndarray] = []
        members = np.flatnonzero(comparable)
        for band in range(self._bands):
            keys = np.concatenate([np.empty(0, np.uint32), *(some[:, band] for some in self._keys)])
            _, inverse, counts = np.unique(keys[members], return_inverse=True, return_counts=True)
            shared = counts > 1
            numbers = np.where(shared, np.cumsum(shared) - 1, -1).astype(np.int32)
            self._buckets[members, band] = numbers[inverse.reshape(-1)]
            self._first.append(np.full(np.count_nonzero(shared), -1, np.int32))
        self._next = np.full(self._buckets.shape, -1, np.int32)
        self._place: dict[int, int] = {}
        self.alike = (self._buckets >= 0).any(axis=1)
        """Whether a row shares a bucket with any other."""

    def like(self, row: int) -> int | None:
        """The first of the rows kept so far that this one is a near duplicate of."""
        candidates = sorted({(self._place[other], other) for other in self._candidates(row)}) if self.alike[row] else []
        mine = self._sets(row) if candidates else None
        for _, other in candidates:
            if all(jaccard(a, b) >= self._threshold for a, b in zip(mine, self._sets(other))):
                return other
        return None

    def keep(self, row: int) -> None:
        """Later rows are compared with this one."""
        if self.alike[row]:
            self._place[row] = len(self._place)
            for band, bucket in self._shared(row):
                self._next[row, band] = self._first[band][bucket]
                self._first[band][bucket] = row

    def _candidates(self, row: int) -> Iterator[int]:
        for band, bucket in self._shared(row):
            other = int(self._first[band][bucket])
            while other >= 0:
                yield other
                other = int(self._next[other, band])

    def _shared(self, row: int) -> Iterator[tuple[int, int]]:
        buckets = self._buckets[row]
        return ((int(band), int(buckets[band])) for band in np.flatnonzero(buckets >= 0))

    def name(self, row: int) -> str:
        """The id of a row."""
        return self._read(row)[8 * (self._sizes[row] + self._asked[row]) :].decode()

    def _sets(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """The shingles of a row's response, and of its prompt where the response is short."""
        said, asked = self._sizes[row], self._asked[row]
        both = np.frombuffer(self._read(row), np.uint64, said + asked)
        return np.unique(both[:said]), np.unique(both[said:])

    def _read(self, row: int) -> bytes:
        self._scratch.seek(self._ends[row])
        return self._scratch.read(self._ends[row + 1] - self._ends[row])

    def _flush(self) -> None:
        if self._waiting:
            made = signatures(self._waiting).reshape(len(self._waiting), -1)[:, : self._bands * self._width]
            parts = made.reshape(len(made), self._bands, self._width)
            key = np.zeros(parts.shape[:2], np.uint32)
            for value in range(self._width):
                key = (key ^ parts[:, :, value]) * np.uint32(0x01000193) ^ (key >> np.uint32(15))
            self._keys.append(key)
            try:
                self._scratch.seek(0, os.SEEK_END)  # a comparison may have read elsewhere
                self._scratch.write(b"".join(self._lines))
                self._scratch.flush()
            except OSError as error:
                raise StoreError(
                    "no room for the shingles", where=tempfile.gettempdir(), found=error.strerror,
                    way_out="set TMPDIR to a folder with room for about twice the rows",
                ) from error  # fmt: skip
            self._waiting, self._lines = [], []
