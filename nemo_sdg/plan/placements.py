"""Which TP x PP x DP hold each phase on the nodes that there are, best first by the time that is estimated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nemo_sdg.errors import UserError
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.parallel.topology import Grid, check_global_batch
from nemo_sdg.plan.course import ROLES, Course
from nemo_sdg.plan.timing import Laid, generate_s, score_s

_EACH = 3
"""Rows of the table for a phase at most."""


@dataclass(frozen=True)
class Placement:
    phase: str
    how: str
    """in_turn, together or split; of training empty."""
    grids: tuple[Grid, ...]
    """Of the phase; of generation and scoring at the same time, of both."""
    num_bytes: int
    """On the fullest rank."""
    seconds: float
    """Of a round."""

    @property
    def grid(self) -> str:
        """In short, for a table."""
        return ", ".join(f"{g.tp} x {g.pp} x {g.dp}" for g in self.grids)

    def is_of(self, course: Course) -> bool:
        """Whether the run is laid out so."""
        grids = course.grids
        ours = (grids.train,) if self.phase == "train" else (grids.generate, grids.score)
        same = [(g.tp, g.pp, g.dp) for g in self.grids] == [(g.tp, g.pp, g.dp) for g in ours]
        return same and self.how in ("", course.config.models.placement)


def placements(course: Course, ranks: int) -> tuple[list[Placement], dict[str, Placement | None]]:
    """(the best that fit, by phase; of each phase the one that is nearest to fitting where none does)."""
    tables: list[Placement] = []
    nearest: dict[str, Placement | None] = {}
    for phase, every in (("train", _training(course, ranks)), ("generate, score", _answering(course, ranks))):
        found = list(every)
        if not found:
            continue
        fitting = sorted((p for p in found if p.num_bytes <= course.machine.usable_bytes), key=lambda p: p.seconds)
        tables += _varied(fitting, course)
        nearest[phase] = None if fitting else min(found, key=lambda p: p.num_bytes)
    return tables, nearest


def more_ranks(course: Course, ranks: int) -> Placement | None:
    """The first placement of training that fits on a multiple of so many ranks: replicas share the optimizer."""
    for factor in (2, 3, 4, 6, 8):
        found = [one for one in _training(course, factor * ranks) if one.num_bytes <= course.machine.usable_bytes]
        if found:
            return min(found, key=lambda one: one.seconds)
    return None


def _varied(fitting: list[Placement], course: Course) -> list[Placement]:
    """The best ones, among them the best of each way to place, and the run's own."""
    first = {p.how: p for p in reversed(fitting)}
    own = [p for p in fitting if p.is_of(course)]
    return sorted({id(p): p for p in (*fitting[:_EACH], *first.values(), *own)}.values(), key=lambda p: p.seconds)


def grids_of(shape: NemotronShape, ranks: int, per_node: int) -> Iterator[Grid]:
    """The grids of so many ranks that can hold a model; tensor-parallel ranks stay within a node."""
    for tp in range(1, min(shape.num_query_groups, per_node, ranks) + 1):
        for pp in range(1, min(shape.num_layers, ranks // tp) + 1):
            if ranks % (tp * pp) or shape.num_layers % pp or per_node % tp:
                continue
            try:
                shape.check_topology(tp, pp)
            except UserError:
                continue
            yield Grid(tp, pp, ranks // (tp * pp))


def _training(course: Course, ranks: int) -> Iterator[Placement]:
    if not course.fits:
        return
    shape = next(iter(course.fits.values()))[0]
    config = course.config
    virtual = config.topology.virtual_stages
    for grid in grids_of(shape, ranks, course.machine.ranks_per_node):
        chunks = virtual if grid.pp > 1 and (shape.num_layers // grid.pp) % virtual == 0 else 1
        sharded = config.topology.sequence_parallel and grid.tp > 1
        topology = replace(config.topology, virtual_stages=chunks, sequence_parallel=sharded)
        here = replace(course, config=replace(config, topology=topology), grids=replace(course.grids, train=grid))
        try:
            for task in course.fits:
                check_global_batch(getattr(config, task), grid.dp, task, grid.pp if chunks > 1 else 1)
        except UserError:
            continue
        laid = {task: here.laid(ROLES[task], grid, *what) for task, what in course.fits.items()}
        held = max(stage.total for one in laid.values() for stage in one.stages)
        yield Placement("train", "", (grid,), held, sum(here.fit_s(one, task) for task, one in laid.items()))


def _answering(course: Course, ranks: int) -> Iterator[Placement]:
    """Generation and scoring: one after the other each at its best, both in memory, or on ranks of their own."""
    models = {m.role: m for m in course.models if m.role in ("generate", "score")}
    if len(models) < 2 or course.asked is None:
        return
    per_node = course.machine.ranks_per_node
    found: dict[tuple[str, int], list[Laid]] = {}

    def laid(role: str, count: int) -> list[Laid]:
        if (role, count) not in found:
            model = models[role]
            of = [course.laid(role, grid, model.shape, model.reward) for grid in grids_of(model.shape, count, per_node)]
            found[role, count] = [one for one in of if _fullest(one) <= course.machine.usable_bytes] or of
        return found[role, count]

    def seconds(role: str, one: Laid) -> float:
        settings = course.config.generate
        if role == "generate":
            return generate_s(one, course.asked, settings.slots, settings.prefill_tokens)
        return score_s(one, course.asked, course.config.score.pack_tokens)

    def quickest(role: str, count: int) -> list[tuple[float, Laid]]:
        return sorted(((seconds(role, one), one) for one in laid(role, count)), key=lambda pair: pair[0])[:_EACH]

    for (took, one), (scoring, other) in zip(quickest("generate", ranks), quickest("score", ranks)):
        reload = course.read_s(one) + course.read_s(other)
        held = max(_fullest(one), _fullest(other))
        yield Placement("generate, score", "in_turn", (one.grid, other.grid), held, took + scoring + reload)
    for one in laid("generate", ranks):
        same = [other for other in laid("score", ranks) if other.grid == one.grid]
        for other in same:
            held = _fullest(one) + max(stage.total for stage in other.stages)
            took = seconds("generate", one) + seconds("score", other)
            yield Placement("generate, score", "together", (one.grid, other.grid), held, took)
    for share in {ranks // part for part in (2, 3, 4, 6, 8, 12, 16) if ranks % part == 0 and ranks // part < ranks}:
        first, second = quickest("generate", ranks - share), quickest("score", share)
        if first and second:
            (took, one), (scoring, other) = first[0], second[0]
            held = max(_fullest(one), _fullest(other))
            yield Placement("generate, score", "split", (one.grid, other.grid), held, max(took, scoring))


def _fullest(laid: Laid) -> int:
    return max(stage.total for stage in laid.stages)

