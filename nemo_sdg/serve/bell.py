"""How ranks that have nothing to do wait for rank 0: without using the processor, and for as long as it takes.

A collective would end with the process group's timeout, and on a GPU it would keep a core busy. A key in the
store of the process group does neither.
"""

from __future__ import annotations

import datetime

import torch.distributed as dist

from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.parallel.rendezvous import job_store

_LOOK_S = 20
"""Seconds after which a waiting rank asks again: shorter than what the store allows a single request."""


class Bell:
    """Rung by rank 0, heard once by every other rank."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh, self._rings = mesh, 0

    def _key(self) -> str:
        self._rings += 1
        return f"nemo_sdg/serve/bell/{self._rings}"

    def ring(self) -> None:
        if self._mesh.world_size > 1:
            job_store().set(self._key(), "rung")

    def wait(self) -> None:
        """Returns when rank 0 has rung. Raises what the store raises when it is gone."""
        key, store = self._key(), job_store()
        while True:
            try:
                store.wait([key], datetime.timedelta(seconds=_LOOK_S))
                break
            except dist.DistStoreError as error:
                if "timeout" not in str(error).lower():
                    raise
        # The last one to hear it takes it away, so that a server may run for years.
        if store.add(f"{key}/heard", 1) == self._mesh.world_size - 1:
            store.delete_key(key)
            store.delete_key(f"{key}/heard")
