"""A model whose weights are deleted and whose name stays: what it was and what it held, so that a run that has gone on
from it still knows it. `retire` deletes; readers take it for a checkpoint whose files are missing.

`cleaned.json` is written first and holds everything that reading the metadata had told. What is interrupted after it is
finished by the next `retire`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.tensors import Contents, Piece, StoredTensor
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.store import disk
from nemo_sdg.store.seals import CLEANED, commit_json, read_json

_DIGESTS = ("digest", "weights_digest")


def recognise(files: Files) -> bool:
    """Whether the weights of this folder were deleted by us."""
    return CLEANED in files.entries()


def read(files: Files) -> Contents:
    """What the model held, as its own format had told it; of the files themselves nothing is looked for."""
    told = _told(files.where)
    try:
        tensors = {key: _tensor(files.where, key, one) for key, one in told["tensors"].items()}
        shape = NemotronShape.from_model_config(told["shape"], files.where / CLEANED, int(told["vocab_size"]))
        return Contents(told["format"], files, shape, tensors, told["tokenizer"], told["saved_with"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            "the file was torn or altered", where=files.where / CLEANED, found=str(error), way_out="put a copy back"
        ) from error


def digest(where: Path, kind: str) -> str | None:
    """`ModelFolder.digest` or `weights_digest` as it was; None for a model that has its weights."""
    return _told(where)[kind] if where.is_dir() and (where / CLEANED).is_file() else None


def weight_files(contents: Contents) -> list[Path]:
    """The files that hold the weights, there or not."""
    pieces = (p for tensor in contents.tensors.values() for pieces in tensor.by_layer.values() for p in pieces)
    return sorted({piece.file for piece in pieces})


def retire(folder: Path, contents: Contents, digests: dict[str, str]) -> int:
    """Deletes the weights of a model folder that is ours; returns the bytes that this has freed.

    Args:
        contents: of the folder.
        digests: what `ModelFolder.digest` and `weights_digest` say of it.
    Raises:
        CheckpointError: a file lies outside the folder; nothing is deleted.
    """
    files = weight_files(contents)
    for file in files:
        contents.files.size(file)
    if not (folder / CLEANED).is_file():
        commit_json(folder / CLEANED, {
            **{kind: digests[kind] for kind in _DIGESTS},
            "format": contents.format,
            "shape": contents.shape.model_config(),
            "vocab_size": contents.shape.vocab_size,
            "tokenizer": contents.tokenizer,
            "saved_with": dict(contents.saved_with),
            "removed": [file.relative_to(folder).as_posix() for file in files],
            "tensors": {key: _plain(folder, tensor) for key, tensor in sorted(contents.tensors.items())},
        })  # fmt: skip
    freed = 0
    for file in files:
        if file.is_file():
            found = file.stat()
            freed += found.st_size if found.st_nlink == 1 else 0
            disk.fs.unlink(file)
    return freed


def _told(where: Path) -> dict[str, Any]:
    told = read_json(where / CLEANED)
    assert told is not None, "recognised by this file"
    return told


def _plain(folder: Path, tensor: StoredTensor) -> dict[str, Any]:
    by_layer = [
        [layer, [[p.file.relative_to(folder).as_posix(), p.offset, p.origin, p.shape, p.file_size] for p in pieces]]
        for layer, pieces in tensor.by_layer.items()
    ]
    return {"shape": tensor.shape, "dtype": tensor.dtype, "by_layer": by_layer}


def _tensor(folder: Path, key: str, told: dict[str, Any]) -> StoredTensor:

    def piece(file: str, offset: int, origin: list[int], shape: list[int], size: int | None) -> Piece:
        if Path(file).is_absolute() or ".." in Path(file).parts:  # the note is anybody's to write
            raise ValueError(f"{file} leads out of the folder")
        return Piece(folder / file, offset, tuple(origin), tuple(shape), size)

    by_layer = {layer: tuple(piece(*one) for one in pieces) for layer, pieces in told["by_layer"]}
    return StoredTensor(key, tuple(told["shape"]), told["dtype"], folder, by_layer)
