"""Low-rank adapters in the layout of Hugging Face PEFT: their names, and a model with an adapter merged in. No torch.

A folder with `adapter_config.json` and `adapter_model.safetensors`. The fused projection of queries, keys and values is
three modules there, which share A where they come from one adapter of ours.
Source: huggingface/peft: docs/source/developer_guides/checkpoint.md, src/peft/tuners/lora/config.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.hf.header import read_header
from nemo_sdg.checkpoints.hf.names import SCORE, HFTensor, hf_tensors
from nemo_sdg.checkpoints.hf.plain_json import read_object
from nemo_sdg.checkpoints.names import HEAD, LAYERS, Region, architecture
from nemo_sdg.checkpoints.reading import RAW, read_array
from nemo_sdg.checkpoints.tensors import Contents, StoredTensor
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.shapes import NemotronShape

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LINEARS = {
    "linear_qkv": f"{LAYERS}self_attention.linear_qkv.weight",
    "linear_proj": f"{LAYERS}self_attention.linear_proj.weight",
    "linear_fc1": f"{LAYERS}mlp.linear_fc1.weight",
    "linear_fc2": f"{LAYERS}mlp.linear_fc2.weight",
}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, [], ["score"]),
    "layers_pattern": (None, []),
    "trainable_token_indices": (None,),
}
"""Settings of PEFT that must be so for B A x alpha / r to be all that an adapter adds."""


def modules(shape: NemotronShape, target: str, layer: int) -> list[HFTensor]:
    """The Hugging Face tensors that a linear of a layer is, in their order."""
    return [tensor for tensor in hf_tensors(shape, [_LINEARS[target]]) if tensor.layer == layer]


def adapter_names(tensor: HFTensor) -> tuple[str, str]:
    """Names of A and B of a module in an adapter file."""
    module = tensor.name.removesuffix(".weight")
    return f"{_PREFIX}{module}.lora_A.weight", f"{_PREFIX}{module}.lora_B.weight"


def head_name() -> str:
    """Name of a reward head that was trained as a whole."""
    return _PREFIX + SCORE


def adapter_config(base: str, *, rank: int, alpha: float, targets: list[str], reward: bool) -> str:
    """The text of `adapter_config.json`.

    Args:
        base: the model that the adapter belongs to, as it was named.
    """
    by_linear = {
        "linear_qkv": ["q_proj", "k_proj", "v_proj"], "linear_proj": ["o_proj"], "linear_fc1": ["up_proj"],
        "linear_fc2": ["down_proj"],
    }  # fmt: skip
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if reward else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": [name for target in targets for name in by_linear[target]],
        "modules_to_save": ["score"] if reward else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    return json.dumps(config, indent=2) + "\n"


@dataclass(frozen=True)
class _Part:
    """What an adapter adds to some rows of a weight."""

    tensor: HFTensor
    a_RI: np.ndarray
    b_OR: np.ndarray


class Adapter:
    """An adapter folder for a model of this shape."""

    def __init__(self, path: Path, shape: NemotronShape) -> None:
        """Raises CheckpointError for an adapter of another kind or shape, or one that is not whole."""
        self.path, self.shape = path, shape
        self.scale, arrays = _read(Files(path))
        self.digest = hashlib.sha256(
            b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays)) + repr(self.scale).encode()
        ).hexdigest()[:16]
        self.head = arrays.pop(head_name(), None)
        """The reward head that goes with it, if one was trained."""
        if self.head is not None and self.head.shape != architecture(shape)[HEAD].shape:
            raise self._misfit(head_name(), self.head.shape, architecture(shape)[HEAD].shape)
        self._parts: dict[tuple[str, int], list[_Part]] = {}
        for key in _LINEARS.values():
            for tensor in hf_tensors(shape, [key]):
                names = adapter_names(tensor)
                if not any(name in arrays for name in names):
                    continue
                a_RI, b_OR = (arrays.pop(name, np.empty(0)) for name in names)
                found = (*a_RI.shape[1:], *b_OR.shape[:1])
                if a_RI.shape[:1] != b_OR.shape[1:] or found != (tensor.shape[1], tensor.shape[0]):
                    raise self._misfit(tensor.name, (a_RI.shape, b_OR.shape), f"A and B of {tensor.shape}")
                self._parts.setdefault((key, tensor.layer), []).append(_Part(tensor, a_RI, b_OR))
        if arrays:
            raise self._misfit(next(iter(arrays)), "a module that this model does not have", "its linears")
        if not self._parts:
            raise self._misfit("the adapter", "no tensors", "A and B of a linear at least")

    def _misfit(self, what: str, found: object, expected: object) -> CheckpointError:
        return CheckpointError(
            f"{what[:120]} does not fit the model", where=self.path / WEIGHTS, found=found, expected=expected,
            way_out="name the adapter of this very model",
        )  # fmt: skip

    def merged(self, contents: Contents) -> Contents:
        """A model with the adapter in its weights; each sum is rounded once to the dtype of the weight."""
        tensors = dict(contents.tensors)
        for key in {key for key, _ in self._parts}:
            tensors[key] = replace(tensors[key], made=_Sum(self, contents, tensors[key]))
        if self.head is not None:
            stored = StoredTensor(HEAD, self.head.shape, contents.dtype, self.path / WEIGHTS, {None: ()})
            tensors[HEAD] = replace(stored, made=lambda box, layer: _bits(self.head[box], stored.dtype))
        return replace(contents, tensors=tensors)

    def delta(
        self, key: str, layer: int, rows: slice, columns: slice, dtype: Any
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows within the box, what is added to them) of a box of a layer's weight."""
        for part in self._parts.get((key, layer), ()):
            a_RI, first = part.a_RI[:, columns].astype(dtype), 0
            for start, stop in part.tensor.rows(self.shape):
                begin, end = max(start, rows.start), min(stop, rows.stop)
                if begin < end:
                    b_OR = part.b_OR[first + begin - start : first + end - start].astype(dtype)
                    yield slice(begin - rows.start, end - rows.start), self.scale * (b_OR @ a_RI)
                first += stop - start


class _Sum:
    """Makes boxes of a weight with an adapter added."""

    def __init__(self, adapter: Adapter, contents: Contents, stored: StoredTensor) -> None:
        self._adapter, self._contents, self._stored = adapter, contents, stored

    def __call__(self, box: Region, layer: int | None) -> np.ndarray:
        raw = read_array(self._contents.files, self._stored, box, layer)
        values = _values(raw, self._stored.dtype)
        assert layer is not None
        for rows, added in self._adapter.delta(self._stored.key, layer, *box[-2:], values.dtype):
            values[rows] += added
        return _bits(values, self._stored.dtype)


def _read(files: Files) -> tuple[float, dict[str, np.ndarray]]:
    """The scale of an adapter, and its tensors by name."""
    config = read_object(files, CONFIG, "the adapter's config", at_most=1 << 20)
    for key, allowed in _NEUTRAL.items():
        if config.get(key, allowed[0]) not in allowed:
            raise CheckpointError(
                "the adapter is of a kind that is not read", where=files.path(CONFIG),
                found=f"{key}: {config[key]!r}"[:120], expected=f"{key}: {allowed[0]!r}",
                way_out="merge it with the peft package: model.merge_and_unload()",
            )  # fmt: skip
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise CheckpointError(
            "the adapter's config has no rank and alpha", where=files.path(CONFIG), found=f"r {rank!r}, alpha {alpha!r}"
        )
    member = files.find(WEIGHTS)
    if member is None:
        raise CheckpointError(
            "the adapter has no weights", where=files.where, found=f"no {WEIGHTS}", expected="safetensors",
            way_out="save it with safetensors: a pickle is never opened",
        )  # fmt: skip
    arrays = {}
    with open(member.file, "rb") as file:
        for name, slot in read_header(member).items():
            file.seek(slot.offset)
            count = int(np.prod(slot.shape))
            raw = np.frombuffer(file.read(count * RAW[slot.dtype]().nbytes), RAW[slot.dtype]).reshape(slot.shape)
            arrays[name] = _values(raw, slot.dtype)
            if not np.isfinite(arrays[name]).all():
                raise CheckpointError(f"{name[:120]} holds values that are not finite", where=member.file)
            if name.endswith(".lora_A.weight") and slot.shape[:1] != (rank,):
                raise CheckpointError(
                    f"{name[:120]} is not of the adapter's rank", where=member.file, found=slot.shape, expected=rank
                )
    return alpha / rank, arrays


def _values(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Raw bits as numbers, in fp32 or wider; the array is new."""
    if dtype == "bf16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    floats = raw.view({"fp16": np.float16, "fp32": np.float32, "fp64": np.float64}[dtype])
    return floats.astype(np.promote_types(floats.dtype, np.float32))


def _bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers as raw bits of a dtype, rounded to the nearest, halves to even."""
    if dtype != "bf16":
        kind = {"fp16": np.float16, "fp32": np.float32, "fp64": np.float64}[dtype]
        return np.ascontiguousarray(values.astype(kind)).view(RAW[dtype])
    wide = np.ascontiguousarray(values.astype(np.float32)).view(np.uint32)
    return ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)
