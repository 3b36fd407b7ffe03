"""Is a checkpoint whole? Asked of names, headers and file sizes alone: no torch, no weight is read.

Loading checks the same again on each rank; this says it in a second, before anything starts.
"""

from __future__ import annotations

import math
from pathlib import Path

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.tensors import ITEM_BYTES, Piece
from nemo_sdg.errors import CheckpointError


def survey(folder: ModelFolder) -> None:
    """Raises CheckpointError if a file of the weights is missing, or has not the size that the metadata ask for."""
    contents = folder.contents
    last: dict[Path, tuple[Piece, int]] = {}
    for tensor in contents.tensors.values():
        for pieces in tensor.by_layer.values():
            for piece in pieces:
                end = piece.offset + math.prod(piece.shape) * ITEM_BYTES[tensor.dtype]
                if piece.file not in last or last[piece.file][1] < end:
                    last[piece.file] = (piece, end)
    for file, (piece, end) in last.items():
        check_size(file, contents.files.size(file), piece.file_size, end)


def check_size(file: Path, size: int | None, exact: int | None, at_least: int) -> None:
    """Raises CheckpointError unless a file of weights is there and has its size."""
    if size is None or (size != exact if exact is not None else size < at_least):
        expected = f"{exact} bytes" if exact is not None else f"at least {at_least} bytes"
        raise CheckpointError(
            "a chunk is missing" if size is None else "a chunk has the wrong size", where=file,
            found="no file" if size is None else f"{size} bytes", expected=expected, way_out="download the checkpoint again",
        )  # fmt: skip
