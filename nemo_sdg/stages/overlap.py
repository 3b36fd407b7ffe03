"""Generation and scoring at the same time: a group of responses is scored while others are still generated.

What passes from one to the other is the committed row group, so nothing is scored that a kill could take back, and the
rows are those of one stage after the other.

With several generators the loop does one stage after the other in every placement. Where scoring is on the ranks of
generation it must: a server's groups are made by the first rank alone, which learns of each when the other ranks of its
replica are inside a local model already; to score such a group takes them all, and they would wait for each other for
ever. With placement `split` and a local policy, scoring has ranks of its own and could follow the commits of several
generators as it follows those of one; this is not done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from nemo_sdg.errors import Stopped
from nemo_sdg.parallel import stopping
from nemo_sdg.parallel.agree import on_lead
from nemo_sdg.parallel.phases import Phase
from nemo_sdg.parallel.watch import doing
from nemo_sdg.stages.context import Context
from nemo_sdg.stages.groups import Work
from nemo_sdg.store import Group

POLL_S = (0.02, 0.5)
"""Seconds between two looks for new groups: at first, and after a long wait."""


class Generating(Protocol):
    """`stages.generate.Stage`."""

    work: Work
    phase: Phase

    def groups(self) -> Iterator[Group]: ...

    def finish(self) -> dict[str, Any]: ...


class Scoring(Protocol):
    """`stages.score.Stage`."""

    work: Work
    phase: Phase

    def groups(self, some: Iterable[Group]) -> Iterator[Group]: ...

    def finish(self) -> dict[str, Any]: ...


def run(context: Context, generating: Any, scoring: Any) -> list[dict[str, Any]]:
    """Both stages to their end; the totals of each.

    A server is asked from a thread of the first rank. Of two local models on disjoint ranks each goes its own pace;
    on the same ranks they take turns.
    """
    with scoring, doing(f"generate and score of round {context.round}"):
        stopping.heed_all(context.mesh)
        asked = [stage for stage in (generating, scoring) if stage.role.backend == "endpoint"]
        helpers = [_Helper(lambda stage=stage: _alone(generating, scoring, stage, [])) for stage in asked
                   if stage.phase.mesh is not None]  # fmt: skip
        local = [stage for stage in (generating, scoring) if stage not in asked]
        if len(local) == 2 and generating.phase.mesh is scoring.phase.mesh:
            _replica_by_replica(context, generating, scoring)
        elif len(local) == 2 and set(generating.phase.grid.ranks) & set(scoring.phase.grid.ranks):
            _all_ranks_in_turn(context, generating, scoring)
        else:
            for stage in local:
                if stage.phase.mesh is not None:
                    _alone(generating, scoring, stage, helpers)
        while any(helper.works() for helper in helpers):
            time.sleep(POLL_S[0])
        for helper in helpers:
            helper.heed()
    return [generating.finish(), scoring.finish()]


def _alone(generating: Generating, scoring: Scoring, stage: object, helpers: list[_Helper]) -> None:
    """One of the stages on ranks that do nothing else meanwhile."""
    for _ in generating.groups() if stage is generating else _as_they_come(generating, scoring):
        for helper in helpers:
            helper.works()


def _as_they_come(generating: Generating, scoring: Scoring) -> Iterator[Group]:
    """Scores each group of this replica soon after its responses are there."""
    mesh, waiting, wait = scoring.phase.mesh, list(scoring.work.mine), POLL_S[0]
    while waiting:
        ready = on_lead(mesh, lambda: sorted(generating.work.store.present()))
        some = [group for group in waiting if group.index in ready]
        if not some:
            stopping.heed(mesh)
            time.sleep(wait)
            wait = min(POLL_S[1], wait * 1.5)
            continue
        wait = POLL_S[0]
        waiting = [group for group in waiting if group not in some]
        yield from scoring.groups(some)


def _replica_by_replica(context: Context, generating: Generating, scoring: Scoring) -> None:
    """Two models cut alike on the same ranks: each replica scores what it has generated, and what was left before."""
    before = [index for index in scoring.work.missing if index not in generating.work.missing]
    mesh, groups = scoring.phase.mesh, scoring.work.store.groups
    for _ in scoring.groups([groups[index] for index in before[mesh.dp_rank :: mesh.dp]]):
        pass
    wanted = set(scoring.work.missing)
    for group in generating.groups():
        if group.index in wanted:
            for _ in scoring.groups([group]):
                pass


def _all_ranks_in_turn(context: Context, generating: Generating, scoring: Scoring) -> None:
    """Two models cut differently on the same ranks: each generating replica makes one group, then all ranks score.

    The replicas wait for each other, for one rank generates in another company than it scores in.
    """
    made, open_groups = generating.groups(), set(scoring.work.missing)
    mesh, groups = scoring.phase.mesh, scoring.work.store.groups
    while open_groups:
        next(made, None)
        context.mesh.meet()
        present = context.on_writer(lambda: sorted(generating.work.store.present()))
        ready = [index for index in present if index in open_groups]
        for _ in scoring.groups([groups[index] for index in ready[mesh.dp_rank :: mesh.dp]]):
            pass
        context.mesh.meet()  # or a replica of scoring that was told to stop would be waited for in generation
        open_groups -= set(ready)
    for _ in made:  # groups whose scores were there already
        pass


class _Helper:
    """A thread whose mistake is raised in the one that asks for it.

    A stop is none: this rank's own work ends at a unit of its own, together with its replica.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def works(self) -> bool:
        """Whether it is not done yet; raises what ended it."""
        alive = self._thread.is_alive()
        if self._error is not None and not isinstance(self._error, Stopped):
            raise self._error
        return alive

    def heed(self) -> None:
        """Raises what ended it, a stop too."""
        if self._error is not None:
            raise self._error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
