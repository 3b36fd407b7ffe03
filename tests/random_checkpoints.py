"""Released folders of random bits, in any dtype and chunk grid: no model, no ranks, no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nemo_sdg import resources
from nemo_sdg.checkpoints.description import write_description
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.names import HEAD, OUTPUT_LAYER, architecture, tensor_places
from nemo_sdg.checkpoints.reading import RAW, read_array
from nemo_sdg.models.shapes import NemotronShape, sizes

TOKENIZER = resources.root() / "examples/tiny/tokenizer.model"
_ZARR = {"bf16": "bfloat16", "fp16": "<f2", "fp32": "<f4", "fp64": "<f8"}
_INFINITY = {"bf16": 0x7F80, "fp16": 0x7C00, "fp32": 0x7F800000, "fp64": 0x7FF0000000000000}

Bits = dict[str, np.ndarray]
"""Raw bits by released key, layers on axis 0."""


def little_shape(**changes: int) -> NemotronShape:
    """A few thousand parameters; the vocabulary is that of the tiny world's tokenizer."""
    little = {"num_layers": 3, "hidden_size": 16, "ffn_hidden_size": 24, "kv_channels": 6}
    return dataclasses.replace(sizes()["tiny"], **{**little, **changes})


def random_bits(
    shape: NemotronShape,
    *,
    dtype: str = "bf16",
    reward: bool = False,
    head_bias: bool = False,
    output_layer: bool = False,
    seed: int = 0,
) -> Bits:
    """Any finite values: also -0 and subnormal ones."""
    places = tensor_places(shape, reward=reward, head_bias=head_bias)
    if reward and output_layer:
        places[OUTPUT_LAYER] = architecture(shape)[OUTPUT_LAYER]
    generator = np.random.default_rng(seed)
    kind = RAW[dtype]
    made = {}
    for key, place in places.items():
        raw = np.frombuffer(generator.bytes(math.prod(place.shape) * kind().itemsize), kind).reshape(place.shape).copy()
        infinity = kind(_INFINITY[dtype])
        raw[(raw & infinity) == infinity] &= ~(infinity & -infinity)  # one bit less in the exponent
        made[key] = raw
    return made


def write_release(
    path: Path,
    shape: NemotronShape,
    bits: Bits,
    *,
    dtype: str = "bf16",
    grid: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """A released folder; `grid` gives the chunks of some tensors, the others have one chunk per layer."""
    for key, values in bits.items():
        stacked = architecture(shape)[key].stacked
        chunks = (grid or {}).get(key) or ((1, *values.shape[1:]) if stacked else values.shape)
        array = path / "model_weights" / key
        array.mkdir(parents=True)
        header = {
            "zarr_format": 2, "shape": list(values.shape), "chunks": list(chunks), "dtype": _ZARR[dtype],
            "compressor": None, "fill_value": None, "filters": None, "order": "C",
        }  # fmt: skip
        (array / ".zarray").write_text(json.dumps(header))
        for index in np.ndindex(*(-(-size // step) for size, step in zip(values.shape, chunks))):
            part = values[tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, chunks))]
            chunk = np.zeros(chunks, values.dtype)
            chunk[tuple(slice(0, n) for n in part.shape)] = part
            (array / ".".join(map(str, index))).write_bytes(chunk.tobytes())
    (path / "model_weights/metadata.json").write_text(json.dumps({"sharded_backend": "zarr"}))
    write_description(path, shape, TOKENIZER.read_bytes(), reward=HEAD in bits, dtype=dtype)
    return path


def read_bits(path: Path | str) -> Bits:
    """What a checkpoint of any format holds."""
    contents = ModelFolder.open(path).contents
    read = {}
    for key, tensor in contents.tensors.items():
        whole = tuple(slice(0, size) for size in tensor.shape)
        if architecture(contents.shape)[key].stacked:
            layers = [
                read_array(contents.files, tensor, (slice(layer, layer + 1), *whole[1:]), layer)
                for layer in range(tensor.shape[0])
            ]
            read[key] = np.stack(layers)
        else:
            read[key] = read_array(contents.files, tensor, whole, None)
    return read


def assert_same(found: Bits, truth: Bits) -> None:
    """All tensors, bit by bit."""
    assert found.keys() == truth.keys()
    for key, values in truth.items():
        assert found[key].dtype == values.dtype and np.array_equal(found[key], values), key


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
