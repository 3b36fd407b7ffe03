"""What tensor parallelism cuts, written down apart from the code under test."""

from __future__ import annotations

import numpy as np

AXES = {"embeddings": 0, "output_layer": 0, "linear_qkv": 0, "linear_fc1": 0, "linear_proj": 1, "linear_fc2": 1,
        "rm_head": 1}  # fmt: skip
"""The axis along which Megatron's layers cut their weights; norms and biases are whole on each rank."""


def cut_of(whole: np.ndarray, name: str, tp: int, tp_rank: int) -> np.ndarray:
    """A rank's shard of a parameter, filled up with zeros to the length of the others."""
    axis = next((axis for part, axis in AXES.items() if part in name and name.endswith(".weight")), None)
    if axis is None or "norm" in name:
        return whole
    missing = -whole.shape[axis] % tp
    padded = np.pad(whole, [(0, missing if a == axis else 0) for a in range(whole.ndim)])
    return np.split(padded, tp, axis=axis)[tp_rank]
