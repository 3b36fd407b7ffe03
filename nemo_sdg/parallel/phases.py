"""The ranks of generation, of scoring and of the judge within a job, as meshes."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_sdg.config import RunConfig
from nemo_sdg.parallel.mesh import Mesh, lay
from nemo_sdg.parallel.topology import Grid, grids


@dataclass(frozen=True)
class Phase:
    """Where one phase runs."""

    grid: Grid
    mesh: Mesh | None
    """None on a rank that takes no part in it."""


@dataclass(frozen=True)
class Phases:
    generate: Phase
    score: Phase
    judge: Phase

    @classmethod
    def lay(cls, config: RunConfig, job: Mesh) -> Phases:
        """The phases of a run over the ranks of its job; every rank of the job calls it.

        A phase that is laid out like training uses the job's own groups.

        Raises:
            TopologyError: the ranks do not fill a phase's topology.
        """
        planned = grids(config, job.world_size)
        assert _place(planned.train) == (job.tp, job.pp, job.dp, 0), "the job is laid out as its config says"
        laid: dict[tuple[int, ...], Mesh | None] = {_place(planned.train): job}
        wanted = (planned.generate, planned.score, planned.judge)
        for grid in wanted:
            if _place(grid) not in laid:
                laid[_place(grid)] = lay(grid, job)
        return cls(*(Phase(grid, laid[_place(grid)]) for grid in wanted))

    @classmethod
    def everywhere(cls, job: Mesh) -> Phases:
        """All phases on the job's own grid."""
        phase = Phase(Grid(job.tp, job.pp, job.dp), job)
        return cls(phase, phase, phase)


def _place(grid: Grid) -> tuple[int, ...]:
    return grid.tp, grid.pp, grid.dp, grid.first
