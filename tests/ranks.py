"""`run_ranks`: real ranks for tests, forked from the test process, which has imported everything once."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import tempfile
import traceback
from pathlib import Path
from typing import Any, Callable

import torch

from nemo_sdg.config import Topology
from nemo_sdg.parallel import device, mesh
from nemo_sdg.parallel.launch import launch

TOPOLOGIES = {"one": (1, 1, 1), "tp2": (2, 1, 1), "pp2": (1, 2, 1), "tp2pp2": (2, 2, 1), "dp2": (1, 1, 2)}
"""(tp, pp, dp) of the topologies that every parallel truth is held at."""


def run_ranks(
    fn: Callable[..., Any],
    *args: Any,
    tp: int = 1,
    pp: int = 1,
    dp: int = 1,
    sequence_parallel: bool = False,
    timeout_s: float = 60,
    **stages: int | None,
) -> list[Any]:
    """Run `fn(mesh, *args)` on tp x pp x dp forked ranks and return their results in rank order.

    Even one rank is forked, so that the test process never starts a process group.

    Args:
        stages: first_stage_layers and last_stage_layers of the topology.
    Raises:
        AssertionError: a rank raised; the text is its traceback.
    """
    import megatron.core.models.gpt.gpt_layer_specs  # noqa: F401  (imported once, before the forks)

    device.install()
    gc.freeze()  # as `session` does: a collection in a rank would go through all that the imports have made, and copy it
    world = tp * pp * dp
    with tempfile.TemporaryDirectory() as folder:

        def one_rank() -> int:
            rank = int(os.environ.get("RANK", "0"))
            torch.set_num_threads(1)
            out = Path(folder) / str(rank)
            try:
                topology = Topology(tp=tp, pp=pp, dp=dp, sequence_parallel=sequence_parallel, **stages)
                here = mesh.join(topology, timeout_s=timeout_s)
                out.write_bytes(pickle.dumps((True, fn(here, *args))))
                with contextlib.suppress(RuntimeError):  # a rank may have ended its groups on purpose
                    here.barrier()
            except BaseException:
                out.write_bytes(pickle.dumps((False, traceback.format_exc())))
                return 1
            return 0

        if world == 1:
            pid = os.fork()
            if pid == 0:
                os._exit(one_rank())
            os.waitpid(pid, 0)
        else:
            launch(one_rank, world)
        results = []
        for rank in range(world):
            path = Path(folder) / str(rank)
            assert path.is_file(), f"rank {rank} ended without a result"
            good, value = pickle.loads(path.read_bytes())
            assert good, f"rank {rank}:\n{value}"
            results.append(value)
        return results
