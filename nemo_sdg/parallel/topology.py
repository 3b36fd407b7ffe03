"""Which ranks do what: the rank grid of training and of each phase, settled before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_sdg.config import PhaseTopology, RunConfig, Topology, Training
from nemo_sdg.config.endpoints import other_server
from nemo_sdg.config.judging import has_judge, judge_backend
from nemo_sdg.errors import TopologyError

PHASES = ("generate", "score")


@dataclass(frozen=True)
class Grid:
    """The ranks [first, first + size) of a job as tp x dp x pp."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    first: int = 0
    first_stage_layers: int | None = None
    last_stage_layers: int | None = None

    @property
    def size(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def ranks(self) -> range:
        return range(self.first, self.first + self.size)

    @property
    def uneven_stages(self) -> dict[str, int | None]:
        """Layers of the first and of the last pipeline stage, by the names that models and checks take them under."""
        return {"first_stage_layers": self.first_stage_layers, "last_stage_layers": self.last_stage_layers}

    def __str__(self) -> str:
        return f"{self.size} = tp {self.tp} x pp {self.pp} x dp {self.dp}"


@dataclass(frozen=True)
class Grids:
    """The rank grids of one job."""

    train: Grid
    """All ranks: what the job itself is laid out as."""
    generate: Grid
    score: Grid
    judge: Grid
    """Who asks or runs the judge: the ranks of generation, all ranks beside a server that generates."""

    @property
    def apart(self) -> bool:
        """Whether no rank both generates and scores."""
        return not set(self.generate.ranks) & set(self.score.ranks)


def remote(config: RunConfig, phase: str) -> bool:
    """Whether a server does the work of this phase: it then needs one rank to ask, and no model."""
    return getattr(config, phase).backend == "endpoint"


def trains(config: RunConfig) -> bool:
    return config.sft.enabled or config.reward.enabled or config.preference.enabled


def ranks_wanted(config: RunConfig) -> int:
    """Ranks that a launch on one machine needs when nobody else has started them."""
    topology, local = config.topology, [phase for phase in PHASES if not remote(config, phase)]
    sizes = [_tp_pp(config, phase) * (getattr(config, phase).topology.dp or 1) for phase in local]
    together = sum(sizes) if _split(config) else max(sizes, default=1)
    training = topology.tp * topology.pp * (topology.dp or 1)
    # Phases that take over the run's topology take over its replicas; local models beside a server lie like training.
    inherit = any(getattr(config, phase).topology == PhaseTopology() for phase in local) and not _split(config)
    beside = any(other_server(name, config.generate) is None for name in config.generate.others)
    beside = beside or (has_judge(config) and judge_backend(config) == "local")
    inherit = inherit or (beside and remote(config, "generate"))
    return max(together, training if trains(config) or inherit else 1)


def grids(config: RunConfig, world: int) -> Grids:
    """How `world` ranks are shared out.

    A server's phase is asked by the first rank. Apart from `split`, a phase uses all ranks.

    Raises:
        TopologyError: the ranks do not fill the topology of training or of a phase exactly.
    """
    topology = config.topology
    if not trains(config) and world % (topology.tp * topology.pp):
        train = Grid(dp=world)  # nothing is laid out so
    else:
        dp = data_parallel_size(topology, world)
        train = Grid(topology.tp, topology.pp, dp, 0, topology.first_stage_layers, topology.last_stage_layers)
    shares = _shares(config, world)
    made = {}
    for phase in PHASES:
        if remote(config, phase):
            made[phase] = Grid()
            continue
        wanted = _wanted(config, phase)
        uneven = train.uneven_stages if wanted.pp == topology.pp and not _hf(config, phase) else {}
        dp = data_parallel_size(wanted, len(shares[phase]), f"{phase}.topology")
        made[phase] = Grid(wanted.tp, wanted.pp, dp, shares[phase].start, **uneven)
    return Grids(train, **made, judge=_judge(config, train, made["generate"]))


def _judge(config: RunConfig, train: Grid, generate: Grid) -> Grid:
    if judge_backend(config) == "endpoint":
        return Grid()
    return train if remote(config, "generate") else generate


def data_parallel_size(topology: Topology, world: int, where: str = "topology") -> int:
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
            where=where,
            found=f"{world} ranks for {asked}",
            expected=f"{needed} ranks" if topology.dp else f"a multiple of {model}",
            way_out=f"launch {needed} ranks, or change {where}.tp, {where}.pp and {where}.dp",
        )
    return dp


def check_global_batch(settings: Training, dp: int, where: str, turns: int = 1) -> None:
    """Raises TopologyError unless micro batches and replicas divide the global batch; names the nearest that works.

    Args:
        turns: micro batches of a replica that come together: pp where stages have virtual ones.
    """
    unit = settings.micro_batch_size * dp * turns
    if settings.global_batch_size % unit:
        nearest = max(unit, round(settings.global_batch_size / unit) * unit)
        raise TopologyError(
            "the global batch cannot be cut into whole micro batches",
            where=f"{where}.global_batch_size",
            found=f"{settings.global_batch_size} with micro_batch_size {settings.micro_batch_size} and {dp} replicas"
            + (f", {turns} micro batches of each together under virtual stages" if turns > 1 else ""),
            expected=f"a multiple of {unit}",
            way_out=f"set {where}.global_batch_size={nearest}",
        )


def _split(config: RunConfig) -> bool:
    """Whether the ranks are shared out between two local phases."""
    return config.models.placement == "split" and not any(remote(config, phase) for phase in PHASES)


def _hf(config: RunConfig, phase: str) -> bool:
    return getattr(config, phase).backend == "hf"


def _wanted(config: RunConfig, phase: str) -> Topology:
    """A phase's topology, with what it takes over from the run's."""
    own = getattr(config, phase).topology
    if _hf(config, phase):  # transformers holds the whole model on each rank
        return Topology(dp=own.dp)
    return Topology(tp=own.tp or config.topology.tp, pp=own.pp or config.topology.pp, dp=own.dp)


def _tp_pp(config: RunConfig, phase: str) -> int:
    wanted = _wanted(config, phase)
    return wanted.tp * wanted.pp


def _shares(config: RunConfig, world: int) -> dict[str, range]:
    """The ranks of each phase. If they are split and nothing is said, the scorer gets as few replicas as work out."""
    if not _split(config):
        return {phase: range(world) for phase in PHASES}
    (each, generate), (each_scorer, score) = ((_tp_pp(config, p), getattr(config, p).topology.dp) for p in PHASES)
    cut = world - each_scorer * (score or 1) if generate is None else each * generate
    if generate is None and score is None:
        cuts = range(cut, 0, -each_scorer)
        cut = next((ranks for ranks in cuts if ranks % each == 0), cut)
    if not 0 < cut < world:
        raise TopologyError(
            "the ranks are too few to generate and score apart",
            where="models.placement",
            found=f"split on {world} ranks",
            expected=f"{each * (generate or 1) + each_scorer * (score or 1)} ranks at least",
            way_out="launch more ranks, or set models.placement=in_turn",
        )
    return {"generate": range(cut), "score": range(cut, world)}
