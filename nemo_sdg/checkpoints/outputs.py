"""The names of a reward model's outputs, as its folder tells them; what a folder does not say is NVIDIA's order.

Released and NeMo 2 folders tell it in `model_config.yaml` (`regression: {outputs: {name: output}}`), Hugging Face ones in
`config.json` (`reward_outputs`, beside the `id2label` that transformers reads).
"""

from __future__ import annotations

from typing import Any

from nemo_sdg.checkpoints.description import CONFIG, read_config
from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.hf.config import CONFIG as HF_CONFIG
from nemo_sdg.checkpoints.hf.config import read_config as read_hf_config
from nemo_sdg.config.rewarding import NAME
from nemo_sdg.config.selection import NUM_REWARD_OUTPUTS, OUTPUTS
from nemo_sdg.errors import CheckpointError


def read_outputs(files: Files) -> dict[str, int]:
    """Output by name, in the order of the outputs. Raises CheckpointError where what stands there are no such names."""
    told: Any = None
    if files.find(CONFIG) is not None:
        regression = read_config(files).get("regression")
        told, where = regression.get("outputs") if isinstance(regression, dict) else None, files.path(CONFIG)
    elif files.find(HF_CONFIG) is not None:
        told, where = read_hf_config(files).get("reward_outputs"), files.path(HF_CONFIG)
    if told is None:
        return dict(OUTPUTS)
    if not _are_outputs(told):
        raise CheckpointError(
            "the outputs of the reward model have no names", where=where, found=repr(told)[:120],
            expected=f"each name with an output of its own, 0 to {NUM_REWARD_OUTPUTS - 1}",
        )  # fmt: skip
    return dict(sorted(told.items(), key=lambda item: item[1]))


def _are_outputs(told: Any) -> bool:
    if not isinstance(told, dict) or not told:
        return False
    names = all(isinstance(name, str) and NAME.fullmatch(name) for name in told)
    slots = [slot for slot in told.values() if type(slot) is int and 0 <= slot < NUM_REWARD_OUTPUTS]
    return names and len(set(slots)) == len(told)
