"""JSON as plain data, strictly: one meaning or none."""

from __future__ import annotations

import json
from typing import Any

from nemo_sdg.checkpoints.files import Files
from nemo_sdg.errors import CheckpointError

WAY_OUT = "download the folder again"


def parse_object(content: bytes, where: object, what: str) -> dict[str, Any]:
    """A JSON object in UTF-8. Raises CheckpointError for anything else, a key that stands twice, NaN or Infinity."""

    def refuse_constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
        return found

    try:
        data = json.loads(content.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{what} is not plain JSON", where=where, found=str(error)[:160], expected="a JSON object", way_out=WAY_OUT
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{what} is not plain JSON", where=where, found=type(data).__name__, expected="an object", way_out=WAY_OUT
        )
    return data


def read_object(files: Files, name: str, what: str, at_most: int) -> dict[str, Any]:
    """The JSON object in a file of the checkpoint. Raises CheckpointError as `parse_object`, or if it is not there."""
    member = files.find(name)
    if member is None:
        raise CheckpointError(f"{what} is missing", where=files.path(name), way_out=WAY_OUT)
    return parse_object(member.read(at_most), files.path(name), what)


def is_size(value: object, below: int = 1 << 48) -> bool:
    """Whether a value is a whole number from 0 on (JSON's true is none)."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < below
