"""Is a checkpoint whole? Asked of names, headers and file sizes alone: no torch, no weight is read.

Loading checks the same again on each rank; this says it in a second, before anything starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_sdg.checkpoints.tensors import ITEM_BYTES, Piece
from nemo_sdg.errors import CheckpointError
from nemo_sdg.store.seals import CLEANED

if TYPE_CHECKING:
    from nemo_sdg.checkpoints.folder import ModelFolder


def survey(folder: ModelFolder) -> None:
    """Raises CheckpointError if a file of the weights is missing, or has not the size that the metadata ask for."""
    contents = folder.contents
    pieces = (
        (piece, tensor.dtype)
        for tensor in contents.tensors.values()
        for pieces in tensor.by_layer.values()
        for piece in pieces
    )
    for file, (exact, end) in extents(pieces).items():
        check_size(file, contents.files.size(file), exact, end)


def extents(pieces: Iterable[tuple[Piece, str]]) -> dict[Path, tuple[int | None, int]]:
    """The exact size, where one is known, and the least size that each file must have for its pieces (and dtypes)."""
    found: dict[Path, tuple[int | None, int]] = {}
    for piece, dtype in pieces:
        end = piece.offset + math.prod(piece.shape) * ITEM_BYTES[dtype]
        exact, least = found.get(piece.file, (None, 0))
        found[piece.file] = (exact if piece.file_size is None else piece.file_size, max(least, end))
    return found


def any_weights(folder: ModelFolder) -> bool:
    """Whether any file of the weights is here; without one, the folder is metadata alone."""
    contents = folder.contents
    return any(
        contents.files.size(piece.file) is not None
        for tensor in contents.tensors.values()
        for pieces in tensor.by_layer.values()
        for piece in pieces
    )


def check_size(file: Path, size: int | None, exact: int | None, at_least: int) -> None:
    """Raises CheckpointError unless a file of weights is there and has its size."""
    if size is None and any((folder / CLEANED).is_file() for folder in (file.parent, file.parent.parent)):
        raise CheckpointError(
            "the weights were deleted by `nemo-sdg clean`, or by keep.*", where=file.parent, found="what the model was, in "
            f"{CLEANED}", expected="its weights", way_out="take the model of a later round, or train this one again in a new run",
        )  # fmt: skip
    if size is None or (size != exact if exact is not None else size < at_least):
        expected = f"{exact} bytes" if exact is not None else f"at least {at_least} bytes"
        raise CheckpointError(
            "a chunk is missing" if size is None else "a chunk has the wrong size", where=file,
            found="no file" if size is None else f"{size} bytes", expected=expected, way_out="download the checkpoint again",
        )  # fmt: skip
