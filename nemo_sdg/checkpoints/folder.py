"""One model on disk, whatever its format: recognised, described and fingerprinted without torch or unpickling."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nemo_sdg.checkpoints import hf, nemo2, release, retired
from nemo_sdg.checkpoints.description import CONFIG, read_tokenizer
from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.tar import TarFiles
from nemo_sdg.checkpoints.tensors import Contents
from nemo_sdg.config.selection import OUTPUTS
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.resources import resolve

_DIGEST_ENDS = 1 << 16
_WAY_OUT = "give a Nemotron checkpoint: a released folder, a Hugging Face folder, a NeMo 2 folder or a .nemo file"
FORMATS = (retired, nemo2, release, hf)
"""Modules with `recognise(files)` and `read(files)`, in the order in which they are asked."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder (or a .nemo file) that holds one model."""

    path: Path

    @classmethod
    def open(cls, path: str | Path, *, metadata_only: bool = False) -> "ModelFolder":
        """Raises CheckpointError if there is no model under the path, HubError if the hub does not give it.

        Args:
            metadata_only: the weights of an hf:// path need not be here.
        """
        folder = cls(resolve(str(path), metadata_only=metadata_only))
        if not folder.path.is_dir() and not folder.path.is_file():
            raise CheckpointError("there is no such model folder", where=folder.path, way_out=_WAY_OUT)
        folder._format  # refuses what is none
        return folder

    @cached_property
    def files(self) -> Files:
        return Files(self.path) if self.path.is_dir() else TarFiles(self.path)

    @cached_property
    def _format(self):  # noqa: ANN202  (a module)
        for module in FORMATS:
            if module.recognise(self.files):
                return module
        refuse_pickled_weights(self.files)
        described = CONFIG in self.files.entries()
        raise CheckpointError(
            "the folder has no weights" if described else "the folder is not a checkpoint", where=self.path,
            found=", ".join(self.files.entries())[:120] or "nothing",
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
        """16 hex digits for the weights, sizes, outputs and the tokenizer: of each file its name, size and both ends.

        Whole files would be 682 GB at 340B; training changes every one of them at both ends.
        """
        return retired.digest(self.path, "digest") or self._digest(self.tokenizer)

    @cached_property
    def weights_digest(self) -> str:
        """As `digest`, without the tokenizer."""
        return retired.digest(self.path, "weights_digest") or self._digest(b"")

    def _digest(self, tokenizer: bytes) -> str:
        whole = hashlib.sha256(repr(self.shape).encode() + tokenizer)
        if self.is_reward and self.contents.outputs != OUTPUTS:
            whole.update(repr(sorted(self.contents.outputs.items())).encode())
        members = {}
        for key, tensor in sorted(self.contents.tensors.items()):
            grid = []
            for piece in (piece for pieces in tensor.by_layer.values() for piece in pieces):
                place = piece.file, piece.offset
                if place not in members:
                    members[place] = self.files.holding(*place)
                grid.append((piece.offset - members[place].offset, piece.origin, piece.shape))
            whole.update(f"{key} {tensor.dtype} {tensor.shape} {grid}\0".encode())
        for member in sorted(set(members.values()), key=lambda member: Path(member.name)):
            whole.update(f"{Path(member.name).name}\0{member.size}\0".encode())
            with open(self.files.open(member.file), "rb") as data:
                for start in (0, max(0, member.size - _DIGEST_ENDS)):
                    data.seek(member.offset + start)
                    whole.update(data.read(min(_DIGEST_ENDS, member.size)))
        return whole.hexdigest()[:16]


def refuse_pickled_weights(files: Files) -> None:
    """Raises CheckpointError for a checkpoint whose weights are a pickle: it could run code and is never opened."""
    for name in files.entries():
        if name.endswith((".ckpt", ".pt", ".pth", ".bin", ".pkl")) or name.startswith(("mp_rank_", "tp_rank_")):
            raise CheckpointError(
                "the weights are pickled, and a pickle can run code: it is never opened", where=files.path(name),
                expected="model_weights/ with zarr arrays, or safetensors",
                way_out="where you trust it, load it with the program that wrote it and save it as safetensors or zarr",
            )  # fmt: skip
