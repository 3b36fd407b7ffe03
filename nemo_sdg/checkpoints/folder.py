"""What a model folder says about itself, read without torch and without unpickling.

A model folder is `model_config.yaml`, a SentencePiece model, and either `model_weights/` (the released zarr
layout) or `weights/` and `context/` (NeMo 2, what training writes).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.shapes import NUM_REWARD_OUTPUTS, NemotronShape
from nemo_sdg.resources import resolve

CONFIG = "model_config.yaml"
_DIGEST_ENDS = 1 << 16
_WAY_OUT = "give the folder of a Nemotron checkpoint: model_config.yaml, a tokenizer .model and model_weights/"


@dataclass(frozen=True)
class ModelFolder:
    """A folder that holds one model."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> "ModelFolder":
        """Raises CheckpointError if there is no model under the path."""
        folder = cls(resolve(str(path)))
        if not folder.path.is_dir():
            raise CheckpointError("there is no such model folder", where=folder.path, way_out=_WAY_OUT)
        if not (folder.path / CONFIG).is_file():
            raise CheckpointError(
                "the folder is not a checkpoint", where=folder.path, found=f"no {CONFIG}", way_out=_WAY_OUT
            )
        if not (folder.released or (folder.path / "weights").is_dir()):
            raise CheckpointError(
                "the checkpoint has no weights",
                where=folder.path,
                expected="model_weights/ or weights/",
                way_out=_WAY_OUT,
            )
        return folder

    @property
    def released(self) -> bool:
        """Whether the weights lie in the released zarr layout."""
        return (self.path / "model_weights").is_dir()

    @cached_property
    def config(self) -> dict[str, Any]:
        where = self.path / CONFIG
        try:
            config = yaml.safe_load(where.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise CheckpointError(
                "the model config is not plain YAML",
                where=where,
                found=" ".join(str(error).split())[:160],
                way_out=_WAY_OUT,
            ) from error
        if not isinstance(config, dict):
            raise CheckpointError(
                "the model config is not a mapping", where=where, found=type(config).__name__, way_out=_WAY_OUT
            )
        return config

    @cached_property
    def shape(self) -> NemotronShape:
        """Sizes of the model; the vocabulary is the number of rows of the released embedding."""
        if self.released:
            vocab_size = read_zarray(self.path / "model_weights" / "model.embedding.word_embeddings.weight")["shape"][0]
        else:
            vocab_size = self.config.get("vocab_size")
            if not isinstance(vocab_size, int):
                raise CheckpointError(
                    "the vocabulary size is missing", where=self.path / CONFIG, found=repr(vocab_size)
                )
        return NemotronShape.from_model_config(self.config, self.path / CONFIG, vocab_size)

    @property
    def dtype(self) -> str:
        """What the weights are stored in: fp64, fp32 or bf16 (fp16 runs as bf16)."""
        if self.released:
            header = read_zarray(self.path / "model_weights" / "model.embedding.word_embeddings.weight")
            return "bf16" if item_size(header) == 2 else "fp32"
        return str(self.config.get("precision", "bf16"))

    @property
    def is_reward(self) -> bool:
        if self.released:
            return (self.path / "model_weights" / "model.rm_head.weight").is_dir()
        return self.config.get("reward_model_type") == "regression"

    def require(self, *, reward: bool) -> None:
        """Raises CheckpointError if a language model stands where a reward model is needed, or the reverse."""
        if reward != self.is_reward:
            kinds = ("a language model", "a reward model (model.rm_head.weight)")
            raise CheckpointError(
                "the checkpoint is of the wrong kind", where=self.path, found=kinds[self.is_reward],
                expected=kinds[reward], way_out="exchange the folders of models.instruct and models.reward",
            )  # fmt: skip

    @cached_property
    def digest(self) -> str:
        """16 hex digits for the weights, the config and the tokenizer: names, sizes, and both ends of each file.

        Whole files would be 682 GB at 340B; training changes every one of them at both ends.
        """
        whole = hashlib.sha256()
        weights = self.path / ("model_weights" if self.released else "weights")
        for file in [self.path / CONFIG, self.tokenizer, *sorted(weights.rglob("*"))]:
            if file.is_file() and file.name != ".metadata":  # torch's index holds the path that it was saved under
                size = file.stat().st_size
                whole.update(f"{file.relative_to(self.path)}\0{size}\0".encode())
                with open(file, "rb") as data:
                    whole.update(data.read(_DIGEST_ENDS))
                    data.seek(max(0, size - _DIGEST_ENDS))
                    whole.update(data.read(_DIGEST_ENDS))
        return whole.hexdigest()[:16]

    @cached_property
    def tokenizer(self) -> Path:
        """The SentencePiece file: the one that the config names (`nemo:` prefix), or the only one there is."""
        section = self.config.get("tokenizer")
        named = [section.get(key) for key in ("model", "tokenizer_model")] if isinstance(section, dict) else []
        named = [name.removeprefix("nemo:") for name in named if isinstance(name, str)]
        for name in named:
            if Path(name).name == name and (self.path / name).is_file():
                return self.path / name
        found = sorted(self.path.glob("*.model"))
        # The released folders hold the same file under two names.
        if len({file.read_bytes() for file in found}) != 1:
            raise CheckpointError(
                "the tokenizer is missing", where=self.path, found=f"{len(found)} files *.model",
                expected=f"the file {named[0]}" if named else "one SentencePiece file", way_out="download the folder again",
            )  # fmt: skip
        return found[0]


_DTYPES = {"bfloat16": 2, "<f2": 2, "<f4": 4, "float16": 2, "float32": 4}


def read_zarray(array: Path) -> dict[str, Any]:
    """The strictly checked header of one raw zarr v2 array.

    Raises:
        CheckpointError: missing, not JSON, or anything but plain little-endian floats in C order: object types,
            codecs and filters could run code or hide bytes.
    """
    where = array / ".zarray"
    if not where.is_file():
        raise CheckpointError(
            "a tensor is missing", where=array.parent, found=f"no {array.name}/.zarray", expected=array.name,
            way_out="download the folder again, or check that it is the model that you meant",
        )  # fmt: skip
    if where.stat().st_size > 1 << 16:
        raise CheckpointError("the array header is too large", where=where, found=f"{where.stat().st_size} bytes")
    try:
        header = json.loads(where.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            "the array header is not JSON", where=where, found=str(error)[:80], way_out="download it again"
        ) from error

    def refuse(key: str, found: object, expected: str) -> None:
        raise CheckpointError(f"{key} is not supported", where=where, found=repr(found)[:80], expected=expected)

    if not isinstance(header, dict) or header.get("zarr_format") != 2:
        refuse("zarr_format", header.get("zarr_format") if isinstance(header, dict) else header, "2")
    if header.get("dtype") not in _DTYPES:
        refuse("dtype", header.get("dtype"), f"one of {', '.join(_DTYPES)}")
    for key in ("compressor", "filters"):
        if header.get(key) is not None:
            refuse(key, header[key], "null")
    if header.get("order", "C") != "C":
        refuse("order", header["order"], "'C'")
    if header.get("dimension_separator", ".") != ".":
        refuse("dimension_separator", header["dimension_separator"], "'.'")
    for key in ("shape", "chunks"):
        sizes = header.get(key)
        if not (
            isinstance(sizes, list)
            and sizes
            and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes)
        ):
            refuse(key, sizes, "positive integers")
    if len(header["shape"]) != len(header["chunks"]):
        refuse("chunks", header["chunks"], f"{len(header['shape'])} numbers, as the shape has")
    return header


def item_size(header: dict[str, Any]) -> int:
    """Bytes per element of an array."""
    return _DTYPES[header["dtype"]]


def write_description(path: Path, shape: NemotronShape, tokenizer: Path, *, reward: bool, dtype: str = "bf16") -> None:
    """Write `model_config.yaml` and the tokenizer into a model folder that is being made."""
    name = "tokenizer.model"
    shutil.copyfile(tokenizer, path / name)
    config = shape.model_config()
    config["tokenizer"] = {"library": "sentencepiece", "model": f"nemo:{name}", "tokenizer_model": f"nemo:{name}"}
    config["precision"] = dtype
    if reward:
        config["reward_model_type"] = "regression"
        config["regression"] = {"num_attributes": NUM_REWARD_OUTPUTS}
    (path / CONFIG).write_text(yaml.safe_dump(config, sort_keys=True), encoding="utf-8")
