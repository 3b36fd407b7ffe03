"""One model on disk, whatever its format: recognised, described and fingerprinted without torch or unpickling."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nemo_sdg.checkpoints import nemo2, release
from nemo_sdg.checkpoints.description import read_tokenizer
from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.tensors import Contents
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.resources import resolve

_DIGEST_ENDS = 1 << 16
_WAY_OUT = "give a Nemotron checkpoint: a released folder, a Hugging Face folder, a NeMo 2 folder or a .nemo file"
FORMATS = (nemo2, release)
"""Modules with `recognise(files)` and `read(files)`, in the order in which they are asked."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder (or a .nemo file) that holds one model."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> "ModelFolder":
        """Raises CheckpointError if there is no model under the path."""
        folder = cls(resolve(str(path)))
        if not folder.path.is_dir():
            raise CheckpointError("there is no such model folder", where=folder.path, way_out=_WAY_OUT)
        folder._format  # refuses what is none
        return folder

    @cached_property
    def files(self) -> Files:
        return Files(self.path)

    @cached_property
    def _format(self):  # noqa: ANN202  (a module)
        for module in FORMATS:
            if module.recognise(self.files):
                return module
        raise CheckpointError(
            "the folder is not a checkpoint", where=self.path, found=", ".join(self.files.entries())[:120] or "nothing",
            expected="model_weights/ (released), weights/ (NeMo 2) or config.json with *.safetensors (Hugging Face)",
            way_out=_WAY_OUT,
        )  # fmt: skip

    @cached_property
    def contents(self) -> Contents:
        """Every tensor and where its bytes lie. Raises CheckpointError if the checkpoint is not strictly whole."""
        contents = self._format.read(self.files)
        contents.check()
        return contents

    @property
    def shape(self) -> NemotronShape:
        return self.contents.shape

    @property
    def dtype(self) -> str:
        """What the weights are stored in: fp64, fp32, fp16 or bf16."""
        return self.contents.dtype

    @property
    def is_reward(self) -> bool:
        return self.contents.is_reward

    def require(self, *, reward: bool) -> None:
        """Raises CheckpointError if a language model stands where a reward model is needed, or the reverse."""
        if reward != self.is_reward:
            kinds = ("a language model", "a reward model (with model.rm_head.weight)")
            raise CheckpointError(
                "the checkpoint is of the wrong kind", where=self.path, found=kinds[self.is_reward],
                expected=kinds[reward], way_out="exchange the folders of models.instruct and models.reward",
            )  # fmt: skip

    @cached_property
    def tokenizer(self) -> bytes:
        """The SentencePiece model. Raises CheckpointError if there is none."""
        return read_tokenizer(self.files, self.contents.tokenizer)

    @cached_property
    def digest(self) -> str:
        """16 hex digits for the weights, the sizes and the tokenizer: of each file its name, size and both ends.

        Whole files would be 682 GB at 340B; training changes every one of them at both ends.
        """
        whole = hashlib.sha256(repr(self.shape).encode() + self.tokenizer)
        tensors = self.contents.tensors.values()
        for file in sorted({piece.file for t in tensors for pieces in t.by_layer.values() for piece in pieces}):
            try:
                descriptor = self.files.open(file)
            except OSError as error:
                raise CheckpointError(
                    "a file of the weights is missing", where=file, found=error.strerror, way_out=_WAY_OUT
                ) from error
            with open(descriptor, "rb") as data:
                size = os.fstat(descriptor).st_size
                whole.update(f"{file.name}\0{size}\0".encode())
                whole.update(data.read(_DIGEST_ENDS))
                data.seek(max(0, size - _DIGEST_ENDS))
                whole.update(data.read(_DIGEST_ENDS))
        return whole.hexdigest()[:16]
