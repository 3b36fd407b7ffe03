"""The local models that this rank holds from one phase to the next, and where the others wait.

`in_turn` keeps one model on the device. Another one that was there before waits in plain host memory where there is a
GPU: its way back is one copy. On a CPU the host's memory is the device's, so it is let go and read again, from files
that the system still caches. `together` and `split` keep one policy and one reward model on the device.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch

from nemo_sdg.engine.load import load_model
from nemo_sdg.models.nemotron import NemotronModel
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel import device, stopping
from nemo_sdg.parallel.mesh import Mesh


@dataclass
class _Held:
    model: NemotronModel
    tokenizer: Tokenizer
    here: bool = True
    """On the device; else it waits in host memory."""


class Residents:
    """Models by what they are: the folder, the kind, and how it is cut.

    Args:
        several: a policy and a reward model may be on the device at the same time.
    """

    def __init__(self, several: bool) -> None:
        self._several = several
        self._held: OrderedDict[tuple, _Held] = OrderedDict()

    def take(
        self, path: Path | str, mesh: Mesh, *, dtype: str | None, reward: bool, spec: str
    ) -> tuple[NemotronModel, Tokenizer]:
        """The model on the device, ready to run: as it was kept, or loaded.

        All ranks of a replica call it; where phases are cut differently, some of them may hold it and others not.
        Raises:
            Stopped: a rank of the replica was told to stop, and has broken its loading off; on all of them.
            Others are those of `load_model`.
        """
        key = (reward, str(path), mesh.tp, mesh.pp, mesh.first, dtype, spec)
        for other, held in list(self._held.items()):
            if other != key and (not self._several or other[0] == reward):
                self._send_away(other, held)
        held = self._held.get(key)
        if held is None:
            held = _Held(*load_model(path, mesh, dtype=dtype, reward=reward, spec=spec, give_up=stopping.known))
        elif not held.here:
            held.model.to(device.device())
            held.here = True
        stopping.heed_any(mesh)
        self._held[key] = held
        self._held.move_to_end(key)
        return held.model, held.tokenizer

    def clear(self) -> None:
        """Frees the device, for training."""
        for key, held in list(self._held.items()):
            self._send_away(key, held)

    def _send_away(self, key: tuple, held: _Held) -> None:
        if held.here and not device.has_cuda():
            del self._held[key]
            return
        if held.here:
            held.model.to("cpu")
            held.here = False
            torch.cuda.empty_cache()
        # One of each kind waits at most; older ones have been trained further since.
        waiting = [other for other, one in self._held.items() if not one.here and other[0] == key[0]]
        for other in waiting[:-1]:
            del self._held[other]
