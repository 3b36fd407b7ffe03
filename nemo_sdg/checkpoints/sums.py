"""SHA256SUMS of a checkpoint: what `sha256sum -c` reads, held against the files that are there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.making import SUMS
from nemo_sdg.errors import CheckpointError

_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\0]+)")
_MOST_BYTES = 64 << 20
_WEIGHTS = (".safetensors", ".distcp")


def read_sums(files: Files) -> dict[str, str] | None:
    """The SHA-256 in hex of each listed file; None if the checkpoint has no list.

    Raises:
        CheckpointError: a line is not `HEX  NAME`, or a name stands twice.
    """
    member = files.find(SUMS)
    if member is None:
        return None
    where, found = files.path(SUMS), {}
    for number, line in enumerate(member.read(_MOST_BYTES).decode("utf-8", "replace").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in found:
            raise CheckpointError(
                f"line {number} is not valid", where=where, found=repr(line)[:100],
                expected="the SHA-256, and a name once",
            )  # fmt: skip
        found[match[2]] = match[1]
    return found


def unlisted(files: Files, sums: Iterable[str], used: Iterable[str]) -> tuple[list[str], list[str]]:
    """Files that are there and not listed: those that hold or might hold weights, and the others."""
    extra = sorted(set(files.names()) - set(sums) - {SUMS})
    used = set(used)
    weights = [
        name
        for name in extra
        if name in used or name.endswith(_WEIGHTS) or Path(name).parts[0] in ("model_weights", "weights")
    ]
    return weights, [name for name in extra if name not in set(weights)]
