"""NeMo 2 folders for tests, from any other checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.nemo2 import writer
from nemo_sdg.checkpoints.reading import read_array
from nemo_sdg.checkpoints.tensors import Contents


def write_nemo2(source: Path, path: Path, *, tp: int = 1, pp: int = 1) -> Path:
    """Convert a checkpoint; the folder appears in place."""
    folder = ModelFolder.open(source)
    (path / "weights").mkdir(parents=True)
    for unit in writer.units(folder.contents, tp=tp, pp=pp):
        unit.write(path)
    writer.finish(folder.contents, path, tokenizer=folder.tokenizer, tp=tp, pp=pp)
    return path


def whole(contents: Contents) -> dict[tuple[str, int | None], np.ndarray]:
    """The raw bits of every tensor, layer by layer."""
    found = {}
    for key, tensor in contents.tensors.items():
        for layer in tensor.by_layer:
            box = tuple(slice(0, size) for size in tensor.shape)
            if layer is not None:
                box = (slice(layer, layer + 1), *box[1:])
            found[key, layer] = read_array(contents.files, tensor, box, layer)
    return found


def equal(one: Contents, other: Contents) -> bool:
    """Whether two checkpoints hold the same bits under the same names."""
    here, there = whole(one), whole(other)
    dtypes = {key: tensor.dtype for key, tensor in one.tensors.items()}
    return (
        here.keys() == there.keys()
        and dtypes == {key: tensor.dtype for key, tensor in other.tensors.items()}
        and all(np.array_equal(here[key], there[key]) for key in here)
    )
