"""The header of a safetensors file, read strictly and written. No torch, and nothing is mapped.

A file is 8 bytes with the length of the header (little-endian), the header as JSON, and the bytes of the tensors
in C order. Source: huggingface/safetensors: README.md, and safetensors/src/tensor.rs for what is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_sdg.checkpoints.files import Member
from nemo_sdg.checkpoints.hf.plain_json import WAY_OUT, is_size, parse_object
from nemo_sdg.checkpoints.tensors import ITEM_BYTES
from nemo_sdg.errors import CheckpointError

DTYPES = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_LETTERS = {ours: letters for letters, ours in DTYPES.items()}
_LONGEST = 16 << 20
"""The library allows 100 MB, which takes seconds to parse; the 340B model in one file would have 0.2 MB."""


@dataclass(frozen=True)
class Slot:
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    """By our names."""
    shape: tuple[int, ...]
    file: Path
    offset: int
    """Byte in the file at which it begins."""


def read_header(member: Member) -> dict[str, Slot]:
    """The tensors of a safetensors file by name.

    Raises:
        CheckpointError: the header is cut short, not plain JSON, or claims what the file does not hold; two tensors
            overlap, bytes belong to none, or a dtype is not one that weights of this architecture have.
    """
    where = member.file
    with open(member.file, "rb") as file:
        file.seek(member.offset)
        begin = file.read(8)
        length = int.from_bytes(begin, "little")
        if len(begin) < 8 or length > min(_LONGEST, member.size - 8):
            raise CheckpointError(
                "the safetensors header is longer than it can be", where=where, found=f"{length} bytes",
                expected=f"at most {max(0, min(_LONGEST, member.size - 8))} bytes", way_out=WAY_OUT,
            )  # fmt: skip
        text = file.read(length)
    if len(text) != length or not text.startswith(b"{"):
        raise CheckpointError(
            "the safetensors header is not plain JSON", where=where, found=repr(text[:20]), way_out=WAY_OUT
        )
    header = parse_object(text, where, "the safetensors header")
    extra = header.pop("__metadata__", {})
    if not isinstance(extra, dict) or not all(isinstance(value, str) for value in extra.values()):
        raise CheckpointError("__metadata__ of the safetensors header is not texts", where=where, way_out=WAY_OUT)
    spans = {name: _span(name, entry, where) for name, entry in header.items()}
    _check_tiles(spans, member.size - 8 - length, where)
    first = member.offset + 8 + length
    return {
        name: Slot(name, DTYPES[entry["dtype"]], tuple(entry["shape"]), member.file, first + spans[name][0])
        for name, entry in header.items()
    }


def _span(name: str, entry: Any, where: Path) -> tuple[int, int]:
    """The bytes [begin, end) of a tensor, after the header."""

    def refuse(what: str, found: object, expected: object) -> CheckpointError:
        return CheckpointError(
            f"{what} of {name[:120]} in the safetensors header is not supported", where=where, found=repr(found)[:80],
            expected=expected, way_out=WAY_OUT,
        )  # fmt: skip

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refuse("the entry", entry, "dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise refuse("the dtype", dtype, f"one of {', '.join(DTYPES)}")
    if not (isinstance(shape, list) and len(shape) <= 8 and all(is_size(size) for size in shape)):
        raise refuse("the shape", shape, "whole numbers")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(is_size(offset) for offset in offsets)):
        raise refuse("data_offsets", offsets, "two whole numbers")
    size = math.prod(shape) * ITEM_BYTES[DTYPES[dtype]]
    if offsets[1] - offsets[0] != size:
        raise refuse("data_offsets", offsets, f"{size} bytes, for {dtype} of {shape}")
    return offsets[0], offsets[1]


def _check_tiles(spans: dict[str, tuple[int, int]], size: int, where: Path) -> None:
    """The tensors stand end to end and fill the file: no byte belongs to two of them, or to none."""
    position = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: (item[1], item[0])):
        if begin != position:
            raise CheckpointError(
                f"{name[:120]} {'overlaps another tensor' if begin < position else 'leaves a hole before it'}",
                where=where, found=f"it begins at byte {begin}", expected=f"byte {position}", way_out=WAY_OUT,
            )  # fmt: skip
        position = end
    if position != size:
        raise CheckpointError(
            "the safetensors file has not the length that its header asks for", where=where,
            found=f"{size} bytes of tensors", expected=f"{position} bytes", way_out=WAY_OUT,
        )  # fmt: skip


def make_header(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The first bytes of a file that holds these tensors (name, our dtype, shape) in this order.

    It is filled with spaces to a multiple of 8, so that the tensors are aligned.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": _LETTERS[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
