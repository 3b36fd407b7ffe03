"""What a topology and a launch must agree on, checked before torch is imported."""

from __future__ import annotations

from nemo_sdg.config import Topology, Training
from nemo_sdg.errors import TopologyError


def data_parallel_size(topology: Topology, world: int) -> int:
    """Replicas of the model that `world` ranks hold.

    Raises:
        TopologyError: the ranks do not fill TP x PP (x DP) exactly.
    """
    model = topology.tp * topology.pp
    dp, rest = divmod(world, model)
    if rest or dp == 0 or topology.dp not in (None, dp):
        asked = f"tp {topology.tp} x pp {topology.pp}" + (f" x dp {topology.dp}" if topology.dp else "")
        needed = model * (topology.dp or max(1, dp))
        raise TopologyError(
            "the ranks of this launch do not fill the topology",
            where="topology",
            found=f"{world} ranks for {asked}",
            expected=f"{needed} ranks" if topology.dp else f"a multiple of {model}",
            way_out=f"launch {needed} ranks, or change topology.tp, topology.pp and topology.dp",
        )
    return dp


def check_global_batch(settings: Training, dp: int, where: str) -> None:
    """Raises TopologyError unless micro batches and replicas divide the global batch; names the nearest that works."""
    unit = settings.micro_batch_size * dp
    if settings.global_batch_size % unit:
        nearest = max(unit, round(settings.global_batch_size / unit) * unit)
        raise TopologyError(
            "the global batch cannot be cut into whole micro batches",
            where=f"{where}.global_batch_size",
            found=f"{settings.global_batch_size} with micro_batch_size {settings.micro_batch_size} and {dp} replicas",
            expected=f"a multiple of {unit}",
            way_out=f"set {where}.global_batch_size={nearest}",
        )
