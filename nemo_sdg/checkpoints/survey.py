"""Is a released folder whole? Asked of names, headers and file sizes alone: no torch, no weight is read.

Loading checks the same again on each rank; this says it in a second, before anything starts.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from nemo_sdg.checkpoints.folder import ModelFolder, item_size, read_zarray
from nemo_sdg.checkpoints.names import TensorPlace, tensor_places
from nemo_sdg.errors import CheckpointError


def survey(folder: ModelFolder, *, reward: bool) -> int:
    """Checks every tensor that the model needs and returns the bytes of one element as they are stored.

    A NeMo 2 folder (`weights/`) is not looked into: its map of tensors is a pickle. Its elements count 4 bytes.

    Args:
        reward: the folder serves as reward model; a folder without head (Base) then gets a fresh one.
    Raises:
        CheckpointError: a tensor or a chunk is missing, or does not fit the model config.
    """
    if not folder.released:
        return 4
    places = tensor_places(folder.shape, reward=reward)
    if reward and not folder.is_reward:
        places.pop("model.rm_head.weight")
    return max(_check(folder, place) for place in places.values())


def checked_header(array: Path, place: TensorPlace) -> dict[str, Any]:
    """The header of a tensor's array, which must have the shape that the model config asks for."""
    header = read_zarray(array)
    if tuple(header["shape"]) != place.shape:
        raise CheckpointError(
            "the shape of a tensor does not fit the model config",
            where=array,
            found=tuple(header["shape"]),
            expected=place.shape,
            way_out="check that the folder belongs together",
        )
    return header


def _check(folder: ModelFolder, place: TensorPlace) -> int:
    array = folder.path / "model_weights" / place.key
    header = checked_header(array, place)
    expected = math.prod(header["chunks"]) * item_size(header)
    sizes = {entry.name: entry.stat().st_size for entry in array.iterdir() if entry.name != ".zarray"}
    for name in _chunks(header["shape"], header["chunks"]):
        if sizes.get(name) != expected:
            found = f"{sizes[name]} bytes" if name in sizes else "no file"
            raise CheckpointError(
                "a chunk has the wrong size" if name in sizes else "a chunk is missing",
                where=array / name,
                found=found,
                expected=f"{expected} bytes",
                way_out="download the folder again",
            )
    return item_size(header)


def _chunks(shape: list[int], chunks: list[int]) -> list[str]:
    names = [""]
    for size, chunk in zip(shape, chunks):
        names = [f"{name}.{i}" for name in names for i in range(-(-size // chunk))]
    return [name[1:] for name in names]
