"""How many rows a file has, without parsing one."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from nemo_sdg.errors import ConfigError

_COUNT_AT_MOST = 1 << 27
"""Files up to this many bytes are counted line by line; the rows of a larger one are estimated."""


def count_rows(path: Path) -> tuple[int, bool]:
    """(rows of a file, whether each was counted); blank lines are no rows."""
    if path.suffix == ".parquet":
        return _of_parquet(path), True
    size = path.stat().st_size
    whole = size <= (_COUNT_AT_MOST >> 4 if path.suffix == ".gz" else _COUNT_AT_MOST)
    with open(path, "rb") as raw:
        stream = gzip.open(raw) if path.suffix == ".gz" else raw
        try:
            if whole:
                return sum(1 for line in stream if line.strip()), True
            lines = stream.readlines(1 << 22)
            return max(1, round(len(lines) * size / max(1, raw.tell()))), False
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError("cannot read the file", where=path, found=str(error), way_out="write it again") from error


def _of_parquet(path: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(path).num_rows
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError("cannot read the file", where=path, found=str(error), way_out="write it again") from error
