"""The random state of each rank: seeded where a fit begins, kept in its restart points.

NeMo's checkpoints hold none. A rank has torch's generators, Megatron's tracker of streams for tensor-parallel regions,
and those of numpy and Python. They depend on the rank, so a fit that goes on under another topology cannot have them
back: it is seeded anew from its seed and its step, the same each time.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import tensor_parallel

from nemo_sdg.errors import CheckpointError
from nemo_sdg.parallel import device
from nemo_sdg.parallel.agree import on_all, on_writer
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.store.files import refusing, write_file

FOLDER = "random"


def seed(seed: int, step: int, mesh: Mesh) -> None:
    """Seed this rank for a fit that begins at this step.

    As in Megatron, tensor-parallel ranks share the default stream and have streams of their own in the tracker; stages
    and replicas differ in all of them.
    """
    name = f"random\x00{seed}\x00{step}\x00{mesh.pp_rank}\x00{mesh.dp_rank}"
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") // 2  # room for Megatron's offsets
    random.seed(key)
    np.random.seed(key)
    torch.manual_seed(key)
    tensor_parallel.model_parallel_cuda_manual_seed(key)


def save(folder: Path, mesh: Mesh) -> None:
    """Put the state of every rank into a restart point that will be synced and named; all ranks call it."""
    told, file = {"mesh": [mesh.tp, mesh.pp, mesh.dp], **_state()}, _file(folder, mesh.rank)

    def write() -> None:
        with refusing(file):
            file.parent.mkdir(exist_ok=True)
        write_file(file, json.dumps(told).encode())

    on_all(mesh, write)


def restore(folder: Path, mesh: Mesh, otherwise: tuple[int, int]) -> None:
    """Take this rank's state from a restart point, or `seed` with `otherwise` where another topology has saved it.

    Raises:
        CheckpointError: the state of a rank is not there; on all ranks.
    """
    saved_by = on_writer(mesh, lambda: _read(_file(folder, 0))["mesh"])
    if saved_by != [mesh.tp, mesh.pp, mesh.dp]:
        seed(*otherwise, mesh)
        return
    state: dict[str, Any] = {}
    on_all(mesh, lambda: state.update(_read(_file(folder, mesh.rank))))
    _set(state)


def _state() -> dict[str, Any]:
    tracker = tensor_parallel.get_cuda_rng_tracker().get_states()
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": _hex(torch.get_rng_state()),
        "cuda": _hex(torch.cuda.get_rng_state()) if device.has_cuda() else None,
        "tracker": {name: _hex(state) for name, state in tracker.items()},
        "python": [version, list(numbers), gauss],
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],
    }


def _set(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_tensor(state["torch"]))
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(_tensor(state["cuda"]))
    tensor_parallel.get_cuda_rng_tracker().set_states({name: _tensor(x) for name, x in state["tracker"].items()})


def _file(folder: Path, rank: int) -> Path:
    return folder / FOLDER / f"rank-{rank:05d}.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "the random state of a rank cannot be read", where=file, found=str(error),
            way_out="delete this restart point; the fit goes on from the one before it, or begins again",
        ) from error  # fmt: skip


def _hex(state: torch.Tensor) -> str:
    return state.cpu().numpy().tobytes().hex()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
