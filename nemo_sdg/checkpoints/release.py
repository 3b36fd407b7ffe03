"""The released Nemotron-4 folders: raw zarr chunks of tensors stacked over the layers. No torch.

Reading is JSON, YAML and raw bytes; `common.pt` and `_extra_state` are never opened. Layout: the file trees of
nvidia/Nemotron-4-340B-{Base,Instruct,Reward}, and the zarr v2 specification.
"""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

from nemo_sdg.checkpoints.description import CONFIG, read_config, tokenizer_name
from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.names import EMBEDDING, LAYERS, architecture
from nemo_sdg.checkpoints.tensors import ITEM_BYTES, Contents, Piece, StoredTensor
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.shapes import NemotronShape

WEIGHTS = "model_weights"
_DTYPES = {
    "bfloat16": "bf16", "<f2": "fp16", "float16": "fp16", "<f4": "fp32", "float32": "fp32", "<f8": "fp64", "float64": "fp64",
}  # fmt: skip
_MOST_CHUNKS = 1 << 18
"""Of all arrays together: metadata are read within a second. The released 340B folders have about 4,000."""
_MOST_LAYERS = 10_000
_AGAIN = "download the folder again"


def recognise(files: Files) -> bool:
    """Whether this is a released folder."""
    return WEIGHTS in files.entries()


def read(files: Files) -> Contents:
    """What a released folder holds; the vocabulary is the number of rows of its embedding.

    Raises:
        CheckpointError: the config or an array's header is missing, not plain data, or of another architecture.
    """
    config = read_config(files)
    headers = {EMBEDDING: read_header(files, EMBEDDING)}
    shape = NemotronShape.from_model_config(config, files.path(CONFIG), headers[EMBEDDING]["shape"][0])
    _check_rows(files, config, shape.vocab_size)
    known = architecture(shape)
    for name, is_folder in files.entries(WEIGHTS).items():
        if is_folder and not name.endswith("_extra_state"):
            if name not in known:
                raise CheckpointError(
                    "the checkpoint holds a tensor that this architecture does not have",
                    where=files.path(f"{WEIGHTS}/{name}"), found=name,
                    expected="the tensors of the Nemotron architecture",
                    way_out="check that it is of the Nemotron architecture",
                )  # fmt: skip
            headers[name] = read_header(files, name)
    count = sum(map(count_chunks, headers.values()))
    if count > _MOST_CHUNKS:
        raise CheckpointError(
            "there are too many chunks", where=files.path(WEIGHTS), found=count, expected=f"at most {_MOST_CHUNKS}"
        )
    tensors = {key: stored_tensor(files, key, header) for key, header in headers.items()}
    saved_with = {
        short: config[key]
        for short, key in (("tp", "tensor_model_parallel_size"), ("pp", "pipeline_model_parallel_size"))
        if isinstance(config.get(key), int)
    }
    return Contents("release", files, shape, tensors, tokenizer_name(files, config), saved_with)


def _check_rows(files: Files, config: dict[str, Any], rows: int) -> None:
    """The embedding may have more rows than the config's vocabulary, for padding, but not fewer."""
    said = config.get("vocab_size")
    if isinstance(said, int) and rows < said:
        raise CheckpointError(
            f"{EMBEDDING} has fewer rows than the vocabulary", where=files.path(f"{WEIGHTS}/{EMBEDDING}"), found=rows,
            expected=f"at least {said}", way_out=_AGAIN,
        )  # fmt: skip


def read_header(files: Files, key: str) -> dict[str, Any]:
    """The strictly checked header of one raw zarr v2 array.

    Raises:
        CheckpointError: missing, not JSON, or anything but plain little-endian floats in C order: object types,
            codecs and filters could run code or hide bytes.
    """
    name = f"{WEIGHTS}/{key}/.zarray"
    where = files.path(name)
    member = files.find(name)
    if member is None:
        raise CheckpointError(
            "a tensor is missing", where=files.path(WEIGHTS), found=f"no {key}/.zarray", expected=key,
            way_out="download the folder again, or check that it is the model that you meant",
        )  # fmt: skip
    try:
        header = json.loads(member.read(at_most=1 << 16))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            "the array header is not JSON", where=where, found=str(error)[:80], way_out=_AGAIN
        ) from error

    def refuse(field: str, found: object, expected: str) -> None:
        raise CheckpointError(f"{field} is not supported", where=where, found=repr(found)[:80], expected=expected)

    if not isinstance(header, dict) or header.get("zarr_format") != 2:
        refuse("zarr_format", header.get("zarr_format") if isinstance(header, dict) else header, "2")
    if not isinstance(header.get("dtype"), str) or header["dtype"] not in _DTYPES:
        refuse("dtype", header.get("dtype"), f"one of {', '.join(_DTYPES)}")
    for field in ("compressor", "filters"):
        if header.get(field) is not None:
            refuse(field, header[field], "null")
    if header.get("order", "C") != "C":
        refuse("order", header["order"], "'C'")
    if header.get("dimension_separator", ".") != ".":
        refuse("dimension_separator", header["dimension_separator"], "'.'")
    for field in ("shape", "chunks"):
        sizes = header.get(field)
        if not (
            isinstance(sizes, list)
            and sizes
            and all(isinstance(n, int) and not isinstance(n, bool) and 0 < n < 1 << 40 for n in sizes)
        ):
            refuse(field, sizes, "positive integers")
    if len(header["shape"]) > 8:  # before any product: it would have thousands of digits
        refuse("shape", f"{len(header['shape'])} axes", "8 at most")
    if len(header["shape"]) != len(header["chunks"]):
        refuse("chunks", header["chunks"], f"{len(header['shape'])} numbers, as the shape has")
    if _stacked(key) and header["shape"][0] > _MOST_LAYERS:
        refuse("shape", header["shape"], f"at most {_MOST_LAYERS} layers")
    if count_chunks(header) > _MOST_CHUNKS:
        refuse("chunks", header["chunks"], f"fewer than {count_chunks(header)} chunks")
    return header


def count_chunks(header: dict[str, Any]) -> int:
    return math.prod(-(-size // step) for size, step in zip(header["shape"], header["chunks"]))


def _stacked(key: str) -> bool:
    return key.startswith(LAYERS)


def stored_tensor(files: Files, key: str, header: dict[str, Any]) -> StoredTensor:
    """The chunks of an array by its header; nothing is looked up."""
    dtype = _DTYPES[header["dtype"]]
    shape, chunks = tuple(header["shape"]), tuple(header["chunks"])
    size = math.prod(chunks) * ITEM_BYTES[dtype]
    folder = f"{WEIGHTS}/{key}"
    by_layer: dict[int | None, tuple[Piece, ...]] = {}
    stacked = _stacked(key)
    grid = [range(-(-length // step)) for length, step in zip(shape, chunks)]
    inner = list(itertools.product(*(grid[1:] if stacked else grid)))
    for block in grid[0] if stacked else (None,):
        pieces = []
        for index in inner:
            whole = (block, *index) if stacked else index
            origin = tuple(i * step for i, step in zip(whole, chunks))
            file, offset, file_size = files.block(f"{folder}/{'.'.join(map(str, whole))}", size)
            pieces.append(Piece(file, offset, origin, chunks, file_size))
        layers = range(block * chunks[0], min(shape[0], (block + 1) * chunks[0])) if stacked else (None,)
        by_layer.update(dict.fromkeys(layers, tuple(pieces)))
    return StoredTensor(key, shape, dtype, files.path(folder), by_layer)
