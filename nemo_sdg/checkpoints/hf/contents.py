"""A Hugging Face folder to `Contents`: each tensor is a slice of a safetensors file, so nothing is copied. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from nemo_sdg.checkpoints.description import tokenizer_name
from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.hf.config import CAUSAL, CONFIG, REWARD, architecture_of, read_config, shape_of
from nemo_sdg.checkpoints.hf.header import Slot, read_header
from nemo_sdg.checkpoints.hf.names import LM_HEAD, SCORE, SCORE_BIAS, HFTensor, hf_tensors
from nemo_sdg.checkpoints.hf.plain_json import WAY_OUT, read_object
from nemo_sdg.checkpoints.names import OUTPUT_LAYER, architecture, tensor_places
from nemo_sdg.checkpoints.tensors import ITEM_BYTES, Contents, Piece, StoredTensor
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.shapes import NemotronShape

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_UNREAD = re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Old exports carry this table, which follows from the config."""


def recognise(files: Files) -> bool:
    """Whether this is a Hugging Face folder."""
    names = files.entries()
    return CONFIG in names and any(name.endswith((".safetensors", ".bin", INDEX)) for name in names)


def read(files: Files) -> Contents:
    """What a Hugging Face folder holds, from its config, index and headers.

    Raises:
        CheckpointError: naming the file or the tensor that is missing, unknown, twice there or does not fit.
    """
    config, where = read_config(files), files.path(CONFIG)
    kind = architecture_of(config, where)
    shape = shape_of(config, where)
    slots = _slots(files)
    reward = SCORE in slots if kind is None else kind == REWARD
    needed = set(tensor_places(shape, reward=reward, head_bias=SCORE_BIAS in slots))
    if LM_HEAD in slots:
        needed.add(OUTPUT_LAYER)
    parts: dict[str, list[tuple[HFTensor, Slot]]] = {}
    known = set()
    for tensor in hf_tensors(shape, needed):
        slot = slots.get(tensor.name)
        if slot is None:
            raise CheckpointError(
                "a tensor is missing", where=files.where, found=f"no {tensor.name}", expected=tensor.shape,
                way_out="download the checkpoint again, or check that it is the model that you meant",
            )  # fmt: skip
        if slot.shape != tensor.shape:
            raise CheckpointError(
                f"the shape of {tensor.name} does not fit {CONFIG}", where=slot.file, found=slot.shape,
                expected=tensor.shape, way_out="check that the files belong together",
            )  # fmt: skip
        known.add(tensor.name)
        parts.setdefault(tensor.key, []).append((tensor, slot))
    for name, slot in slots.items():
        if name not in known and not _UNREAD.fullmatch(name):
            raise CheckpointError(
                f"the checkpoint holds a tensor that {REWARD if reward else CAUSAL} does not have", where=slot.file,
                found=name[:120], expected="its tensors only", way_out=f"check that {CONFIG} belongs to it",
            )  # fmt: skip
    tensors = {key: _stored(files, shape, key, found) for key, found in parts.items()}
    return Contents("hf", files, shape, tensors, tokenizer_name(files, {}))


def _slots(files: Files) -> dict[str, Slot]:
    """All tensors of the folder by name."""
    weight_map = _weight_map(files)
    if weight_map is None:
        return _header(files, _only_file(files))
    slots: dict[str, Slot] = {}
    for name in sorted(set(weight_map.values())):
        for key, slot in _header(files, name).items():
            if weight_map.get(key) != name:
                raise CheckpointError(
                    f"the file and {INDEX} do not belong together", where=slot.file, found=f"{key[:120]} in it",
                    expected=f"{key[:120]} in {weight_map[key]}" if key in weight_map else "a tensor that the index lists",
                    way_out=WAY_OUT,
                )  # fmt: skip
            slots[key] = slot
    for key, name in weight_map.items():
        if key not in slots:
            raise CheckpointError(
                "a tensor is missing", where=files.path(name), found=f"no {key[:120]}", expected=f"{key[:120]}, as {INDEX} says",
                way_out=WAY_OUT,
            )  # fmt: skip
    return slots


def _header(files: Files, name: str) -> dict[str, Slot]:
    member = files.find(name)
    if member is None:
        raise CheckpointError("a file of the weights is missing", where=files.path(name), way_out=WAY_OUT)
    return read_header(member)


def _weight_map(files: Files) -> Mapping[str, str] | None:
    """Which file holds each tensor; None if there is no index."""
    where = files.path(INDEX)
    if files.find(INDEX) is None:
        return None
    weight_map = read_object(files, INDEX, "the index", at_most=16 << 20).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index lists no tensors", where=where, found="no weight_map", way_out=WAY_OUT)
    for key, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(r"(?!\.)[\w.-]{1,200}\.safetensors", name):
            raise CheckpointError(
                f"the index names no safetensors file of the folder for {key[:120]}", where=where,
                found=repr(name)[:120], expected="NAME.safetensors", way_out=WAY_OUT,
            )  # fmt: skip
    if files.find(SINGLE) is not None and SINGLE not in weight_map.values():
        raise CheckpointError(
            "the folder holds two sets of weights", where=files.where, found=f"{SINGLE}, and {INDEX} without it",
            expected="one of them", way_out="remove the one that you do not mean",
        )  # fmt: skip
    return weight_map


def _only_file(files: Files) -> str:
    names = [name for name in files.entries() if name.endswith(".safetensors")]
    if SINGLE in names:
        return SINGLE
    if len(names) == 1:
        return names[0]
    pickled = ", ".join(name for name in files.entries() if name.endswith(".bin"))
    found = f"{len(names)} *.safetensors" if names else f"only pickles, which are never opened: {pickled[:120]}"
    raise CheckpointError(
        "there is no telling which files hold the weights", where=files.where, found=found,
        expected=f"{SINGLE} or {INDEX}", way_out="get the safetensors of the model and their index",
    )  # fmt: skip


def _stored(files: Files, shape: NemotronShape, key: str, found: list[tuple[HFTensor, Slot]]) -> StoredTensor:
    dtypes = {slot.dtype: tensor.name for tensor, slot in found}
    if len(dtypes) > 1:
        raise CheckpointError(
            "tensors that belong together have different dtypes", where=files.where,
            found=", ".join(f"{name} in {dtype}" for dtype, name in dtypes.items()), expected="one dtype",
            way_out=WAY_OUT,
        )  # fmt: skip
    (dtype,) = dtypes
    by_layer: dict[int | None, list[Piece]] = {}
    for tensor, slot in found:
        row = math.prod(slot.shape[1:])
        offset = slot.offset
        for start, stop in tensor.rows(shape):
            origin, size = (start, *(0 for _ in slot.shape[1:])), (stop - start, *slot.shape[1:])
            if tensor.layer is not None:
                origin, size = (tensor.layer, *origin), (1, *size)
            by_layer.setdefault(tensor.layer, []).append(Piece(slot.file, offset, origin, size))
            offset += (stop - start) * row * ITEM_BYTES[dtype]
    in_files = {slot.file for _, slot in found}
    where = in_files.pop() if len(in_files) == 1 else files.where
    pieces = {layer: tuple(of_layer) for layer, of_layer in by_layer.items()}
    return StoredTensor(key, architecture(shape)[key].shape, dtype, where, pieces)
