"""A checkpoint of any format fills this rank's model: each rank reads the bytes of its own shard and no others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import Module, Parameter

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.names import (
    EMBEDDING,
    HEAD,
    HEAD_BIAS,
    OUTPUT_LAYER,
    Region,
    TensorPlace,
    architecture,
    region,
    released_key,
)
from nemo_sdg.checkpoints.pages import prefer_huge_pages
from nemo_sdg.checkpoints.reading import Box, Put, Reading, read_boxes
from nemo_sdg.checkpoints.tensors import Contents, StoredTensor
from nemo_sdg.errors import CheckpointError
from nemo_sdg.parallel.mesh import Mesh

_SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels")
TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


class Wanted(NamedTuple):
    """What one parameter of a rank needs of a checkpoint."""

    name: str
    parameter: Parameter
    place: TensorPlace
    layer: int | None
    """Global index; None outside the layers."""
    region: Region
    """The box of the tensor that the parameter holds, without the entries of a padded vocabulary."""
    tensor: StoredTensor | None
    """None for a head that is drawn fresh."""


def fill(
    model: Module | Sequence[Module],
    folder: ModelFolder,
    mesh: Mesh,
    *,
    fresh_head_seed: int | None = None,
    threads: int | None = None,
    reading: Reading | None = None,
    give_up: Callable[[], object] = lambda: None,
) -> Reading:
    """Fill every parameter of this rank's model, or of its virtual stages, from a checkpoint.

    Args:
        fresh_head_seed: seed for a fresh reward head (its bias is zero), in place of one that the checkpoint may have;
            None takes the checkpoint's.
        threads: how many read at a time; by default this rank's share of the cores, 8 at most.
        reading: where to note what is read.
        give_up: asked between two blocks; once it is true the rest of the model is not filled, and the caller must see to
            it that nobody uses it (`parallel.stopping.heed_any`).
    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape, cut short, or not finite.
    """
    boxes = []
    for chunk in [model] if isinstance(model, Module) else model:
        for wanted in wants(chunk, folder.contents, mesh, fresh_head=fresh_head_seed is not None):
            name, parameter, place, layer, box, tensor = wanted
            if tensor is None:
                std = chunk.config.init_method_std if place.key == HEAD else 0.0
                parameter.detach().copy_(fresh_tensor(name, place, std, fresh_head_seed, mesh))
                continue
            rows = box[-parameter.dim()]
            parameter.detach()[rows.stop - rows.start :].zero_()  # entries of a padded vocabulary
            boxes.append(Box(tensor, box, layer, _destination(parameter, tensor)))
    return read_boxes(folder.contents.files, boxes, reading, threads=threads, give_up=give_up)


def wants(chunk: Module, contents: Contents, mesh: Mesh, *, fresh_head: bool) -> Iterator[Wanted]:
    """What a rank's model, or one of its virtual stages, needs of a checkpoint; it may be on the meta device.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape.
    """
    places, where = contents.places(reward=chunk.is_reward), contents.files.where
    _require_same_model(chunk, places, contents)
    for name, key, layer, parameter in parameters(chunk):
        fresh = fresh_head and key in (HEAD, HEAD_BIAS)
        if not fresh and (key not in places or key not in contents.tensors):
            raise CheckpointError(
                "the model has a tensor that the checkpoint lacks", where=where, found=f"no {key}",
                way_out="build the model as the checkpoint says: its kind and its head",
            )  # fmt: skip
        place = architecture(contents.shape)[key] if fresh else places[key]
        box = _require_shape(name, parameter, place, layer, mesh, where)
        yield Wanted(name, parameter, place, layer, box, None if fresh else contents.tensors[key])


def _require_same_model(chunk: Module, places: dict[str, TensorPlace], contents: Contents) -> None:
    """Refuses a model of other sizes (not all show in a tensor's shape), or without a tensor of the checkpoint."""
    held, where = {key for _, key, _, _ in parameters(chunk)}, contents.files.where
    for size in _SIZES:
        if getattr(chunk.config, size) != getattr(contents.shape, size):
            raise CheckpointError(
                f"the model's {size} is not the checkpoint's", where=where, found=getattr(contents.shape, size),
                expected=getattr(chunk.config, size), way_out="build the model with the shape of the checkpoint",
            )  # fmt: skip
    here = {"first": chunk.pre_process, "last": chunk.post_process, "layers": len(chunk.decoder.layers) > 0}
    for key, place in places.items():
        if here[place.stage] and key not in held:
            raise CheckpointError(
                "the checkpoint has a tensor that the model lacks", where=where, found=key,
                way_out="build the model as the checkpoint says: its kind and its head",
            )  # fmt: skip


def _require_shape(
    name: str, parameter: Parameter, place: TensorPlace, layer: int | None, mesh: Mesh, where: object
) -> Region:
    """The box of the tensor that a parameter holds, which must be of its shape.

    All shards of a vocabulary are as long as the first one: the model pads the last ones.
    """
    wanted = region(place, layer, mesh.tp, mesh.tp_rank)
    expected = wanted
    if place.key in (EMBEDDING, OUTPUT_LAYER):
        expected = region(place, layer, mesh.tp, 0)
    shape = tuple(slab.stop - slab.start for slab in expected[place.stacked :])
    if shape != tuple(parameter.shape):
        raise CheckpointError(
            f"{place.key} does not fit the model's {name}", where=where, found=shape,
            expected=tuple(parameter.shape), way_out="build the model with the shape of the checkpoint",
        )  # fmt: skip
    return wanted


def _destination(parameter: Parameter, tensor: StoredTensor) -> np.ndarray | Put:
    """The memory of a parameter, where the stored bits can go as they are; else what converts and carries them."""
    values = parameter.detach()
    assert values.is_contiguous(), "Megatron's parameters are"
    stored = TORCH[tensor.dtype]
    if values.dtype is stored and values.device.type == "cpu":
        memory = values.view(torch.uint8).numpy().reshape(-1)
        prefer_huge_pages(memory)
        return memory
    # A finite fp64 value can be infinite in fp32.
    narrower = torch.finfo(values.dtype).max < torch.finfo(stored).max

    def put(raw: np.ndarray, first: int, step: int) -> None:
        bits = torch.from_numpy(raw.view(np.uint8)).view(stored)
        place = values.as_strided(bits.shape, (step, 1), values.storage_offset() + first)
        place.copy_(bits)
        if narrower and not torch.isfinite(place).all():
            raise CheckpointError(
                f"{tensor.key} holds values that {values.dtype} cannot hold", where=tensor.where,
                way_out="load it in the dtype that it is stored in",
            )  # fmt: skip

    return put


def parameters(model: torch.nn.Module) -> Iterable[tuple[str, str, int | None, torch.nn.Parameter]]:
    """(name, released key, global index of the layer, parameter) of all that this stage holds."""
    layers = getattr(model.decoder, "layers", [])
    first_layer = layers[0].layer_number - 1 if len(layers) else 0
    for name, parameter in model.named_parameters():
        yield name, *released_key(name, first_layer), parameter


def fresh_tensor(name: str, place: TensorPlace, std: float, seed: int, mesh: Mesh) -> torch.Tensor:
    """This rank's shard of a new tensor drawn from N(0, std^2): it depends on the seed and the name alone.

    NeMo seeds each pipeline stage differently, so a fresh head would depend on the topology.
    """
    key = int.from_bytes(hashlib.blake2b(f"{seed}\x00{name}".encode(), digest_size=7).digest(), "little")
    whole = torch.empty(place.shape, dtype=torch.float64, device="cpu")
    whole.normal_(0.0, std, generator=torch.Generator("cpu").manual_seed(key))
    return whole[region(place, None, mesh.tp, mesh.tp_rank)]
