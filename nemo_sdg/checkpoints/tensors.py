"""What every format is reduced to: tensors by released key, each made of dense blocks in files. No torch.

The released zarr chunks, the slices of a safetensors file and the records of a torch_dist archive are all
*pieces*: C-order blocks of known shape at a known offset. So one reader serves them all, and the bytes that a
rank will read are known before anything is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.names import HEAD, HEAD_BIAS, OUTPUT_LAYER, Region, TensorPlace, architecture, tensor_places
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.shapes import NemotronShape

ITEM_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}
"""Bytes per element of the dtypes that weights are stored in, by our names."""


@dataclass(frozen=True)
class Piece:
    """One dense C-order block of a tensor, little-endian."""

    file: Path
    offset: int
    """Byte in the file at which the block begins."""
    origin: tuple[int, ...]
    """Where its first element lies in the tensor."""
    shape: tuple[int, ...]
    """Its shape as stored; it may stick out of the tensor (edge chunks of zarr, padded vocabularies)."""
    file_size: int | None = None
    """Bytes that the file must have; None if it must only hold the block."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint; its pieces cover it, and no two of them overlap."""

    key: str
    shape: tuple[int, ...]
    """As `TensorPlace.shape`: axis 0 counts the layers of a stacked tensor."""
    dtype: str
    where: object
    """What a message names: the folder of the array, the file."""
    by_layer: Mapping[Optional[int], tuple[Piece, ...]]
    """The pieces that hold a part of a layer; one that spans layers is listed with each. None: not stacked."""
    made: Optional[Callable[[Region, Optional[int]], Any]] = None
    """Makes the raw bits of a box of a layer, where they are not just those of the pieces (an adapter is merged in)."""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds, from its metadata alone."""

    format: str
    """release, hf or nemo2."""
    files: Files
    shape: NemotronShape
    tensors: Mapping[str, StoredTensor]
    """By released key; a reward model may hold the language model's output layer too, which nothing reads."""
    tokenizer: str | None
    """Name of the SentencePiece file among `files`."""
    saved_with: Mapping[str, int] = field(default_factory=dict)
    """tp and pp that the checkpoint was saved with, where it says so."""

    @property
    def is_reward(self) -> bool:
        return HEAD in self.tensors

    @property
    def head_bias(self) -> bool:
        return HEAD_BIAS in self.tensors

    @property
    def outputs(self) -> dict[str, int]:
        """The outputs of a reward model by name."""
        from nemo_sdg.checkpoints.outputs import read_outputs  # which knows the formats, and they this class

        return read_outputs(self.files)

    @property
    def dtype(self) -> str:
        """The widest dtype among the tensors (they are one in all released folders)."""
        return max((tensor.dtype for tensor in self.tensors.values()), key=lambda name: ITEM_BYTES[name])

    def places(self, *, reward: bool) -> dict[str, TensorPlace]:
        """The tensors that a model of this kind needs from here; a head that is not here must be made fresh."""
        places = tensor_places(self.shape, reward=reward, head_bias=self.head_bias)
        if reward and not self.is_reward:
            del places[HEAD]
        return places

    def check(self) -> None:
        """Every tensor of the architecture that the kind needs is here, in its shape, and nothing else is.

        Raises:
            CheckpointError: naming the tensor, what was expected and what was found.
        """
        places = self.places(reward=self.is_reward or self.head_bias)
        if self.head_bias:
            places[HEAD] = architecture(self.shape)[HEAD]  # a bias tells that its weight is what is missing
        known = {*places, OUTPUT_LAYER}
        for key, place in places.items():
            if key not in self.tensors:
                raise CheckpointError(
                    "a tensor is missing", where=self.files.where, found=f"no {key}", expected=place.shape,
                    way_out="download the checkpoint again, or check that it is the model that you meant",
                )  # fmt: skip
        every = {**places, **tensor_places(self.shape, reward=False)} if OUTPUT_LAYER in self.tensors else places
        for key, tensor in self.tensors.items():
            if key not in known:
                raise CheckpointError(
                    "the checkpoint holds a tensor that this architecture does not have", where=tensor.where, found=key,
                    expected="the tensors of the Nemotron architecture",
                    way_out="check that it is of the Nemotron architecture",
                )  # fmt: skip
            if tensor.shape != every[key].shape:
                raise CheckpointError(
                    f"the shape of {key} does not fit the model's config", where=tensor.where, found=tensor.shape,
                    expected=every[key].shape, way_out="check that the files belong together",
                )  # fmt: skip
        halves = {"bf16": [], "fp16": []}
        for tensor in self.tensors.values():
            halves.get(tensor.dtype, []).append(tensor)
        usual, rare = sorted(halves, key=lambda dtype: -len(halves[dtype]))
        if halves[rare]:  # of one size: a wrong name of a dtype would turn values into others in silence
            odd = halves[rare][0]
            raise CheckpointError(
                f"{odd.key} is in {rare}", where=odd.where, found=f"{rare} beside {usual}",
                expected="one half precision", way_out="download the checkpoint again",
            )  # fmt: skip
