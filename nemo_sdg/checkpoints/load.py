"""A checkpoint of any format fills this rank's model: each rank reads the bytes of its own shard and no others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.names import HEAD, TensorPlace, architecture, region, released_key
from nemo_sdg.checkpoints.reading import Reading, read_array
from nemo_sdg.errors import CheckpointError
from nemo_sdg.parallel.mesh import Mesh

TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


def fill(
    model: torch.nn.Module | Sequence[torch.nn.Module],
    folder: ModelFolder,
    mesh: Mesh,
    *,
    fresh_head_seed: int | None = None,
) -> Reading:
    """Fill every parameter of this rank's model, or of its virtual stages, from a checkpoint.

    Args:
        fresh_head_seed: seed for a reward head that the checkpoint does not have (Base, Instruct).
    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape, cut short, or not finite.
    """
    reading = Reading()
    contents = folder.contents
    for chunk in [model] if isinstance(model, torch.nn.Module) else model:
        places = contents.places(reward=chunk.is_reward)
        for name, key, layer, parameter in parameters(chunk):
            if key == HEAD and key not in places and fresh_head_seed is not None:
                fresh = fresh_tensor(
                    name, architecture(folder.shape)[HEAD], chunk.config.init_method_std, fresh_head_seed, mesh
                )
                with torch.no_grad():
                    parameter.copy_(fresh)
                continue
            if key not in places:
                raise CheckpointError("the model has a tensor that the checkpoint lacks", where=folder.path, found=name)
            wanted = region(places[key], layer, mesh.tp, mesh.tp_rank)
            tensor = contents.tensors[key]
            raw = read_array(contents.files, tensor, wanted, layer, reading)
            values = torch.from_numpy(raw.reshape(-1).view(np.uint8)).view(TORCH[tensor.dtype]).reshape(raw.shape)
            if not torch.isfinite(values).all():
                raise CheckpointError(
                    f"{key} holds values that are not finite", where=tensor.where, way_out="download it again"
                )
            with torch.no_grad():
                rows = values.shape[0]
                parameter[:rows].copy_(values)
                parameter[rows:].zero_()
    return reading


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
