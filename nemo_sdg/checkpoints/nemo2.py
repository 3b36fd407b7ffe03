"""Reading a NeMo 2 checkpoint that training wrote: `weights/` in Megatron's torch_dist format.

Only folders made by a run of ours come here: the format's index (`.metadata`) is a pickle.
"""

from __future__ import annotations

from pathlib import Path

import torch

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.release import fresh_tensor, places_of_head
from nemo_sdg.errors import CheckpointError
from nemo_sdg.parallel import device
from nemo_sdg.parallel.mesh import Mesh

PREFIX = "module."
"""NeMo saves the model as the `module` of its Lightning module."""
_HEAD = "rm_head.weight"


def load(model: torch.nn.Module, path: Path | str, mesh: Mesh, *, fresh_head_seed: int | None = None) -> None:
    """Fill this rank's model from the `weights/` of a folder that training wrote, whatever its TP and PP were.

    Args:
        fresh_head_seed: seed for a reward head that the folder does not have (a policy).
    Raises:
        CheckpointError: a tensor is missing or of another shape, or the weights cannot be read.
    """
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.core import CheckpointingException
    from torch.distributed.checkpoint.api import CheckpointException

    folder = ModelFolder.open(path)
    weights = folder.path / "weights"
    if not (folder.path / "training.json").is_file():
        raise CheckpointError(
            "only NeMo 2 folders that a run of this package has trained are read", where=folder.path,
            found="no training.json", way_out="give the policy/ or reward/ folder of a run, or a released folder",
        )  # fmt: skip
    fresh = not folder.is_reward and fresh_head_seed is not None
    # `_extra_state` holds pickled settings of TransformerEngine's fp8; nothing here needs it.
    wanted = {
        key: value
        for key, value in model.sharded_state_dict(prefix=PREFIX).items()
        if not key.endswith("_extra_state") and not (fresh and key == PREFIX + _HEAD)
    }
    try:
        with device.cuda_calls_on_cpu():
            loaded = dist_checkpointing.load(wanted, str(weights))
    except (CheckpointException, CheckpointingException, KeyError, OSError, ValueError) as error:
        raise CheckpointError(
            "the weights cannot be loaded into this model",
            where=weights,
            found=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            expected="a checkpoint of the same shape, written by training",
            way_out="check model_config.yaml, or train the model again",
        ) from error
    # Beside the tensors comes the trainer's own state: epoch, step, loops.
    state = {key.removeprefix(PREFIX): loaded[key] for key in wanted}
    missing, unknown = model.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.endswith("_extra_state") and not (fresh and key == _HEAD)]
    if missing or unknown:
        raise CheckpointError(
            "tensors do not fit the model", where=weights, found=", ".join([*missing, *unknown])[:200]
        )
    if fresh and hasattr(model, "rm_head"):
        head = fresh_tensor(_HEAD, places_of_head(folder.shape), model.config.init_method_std, fresh_head_seed, mesh)
        with torch.no_grad():
            model.rm_head.weight.copy_(head)
