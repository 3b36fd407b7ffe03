"""The models that a run reads, each on the ranks of its phase."""

from __future__ import annotations

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.release_writer import planned
from nemo_sdg.checkpoints.survey import any_weights, survey
from nemo_sdg.checkpoints.tensors import Contents
from nemo_sdg.config import PhaseTopology, RunConfig
from nemo_sdg.config.endpoints import other_server
from nemo_sdg.config.judging import has_judge, judge_backend, judge_model
from nemo_sdg.config.starting import begins_with
from nemo_sdg.errors import CheckpointError, ConfigError
from nemo_sdg.models.shapes import sizes
from nemo_sdg.parallel.topology import Grids
from nemo_sdg.plan.loading import Loading, loading
from nemo_sdg.plan.memory import ModelPlan, stage_chunks, stage_plans
from nemo_sdg.resources import resolve


def model_plans(config: RunConfig, grids: Grids, dtype: str, gpu: bool, files: bool) -> list[ModelPlan]:
    """The models in the order in which round 0 reads them; what a server or transformers holds is none of ours.

    Raises:
        TopologyError: a phase's TP or PP cannot cut its model.
        CheckpointError, ConfigError: a folder is not there, not whole, or of the wrong kind.
    """
    paths = config.models
    wanted = []
    if config.generate.backend == "local":
        wanted.append(("generate", paths.instruct or paths.base, False, grids.generate))
    beside = grids.generate if config.generate.backend == "local" else grids.train
    for number, name in enumerate(config.generate.others, start=2):
        if other_server(name, config.generate) is None:
            wanted.append((f"generate {number}", name, False, beside))
    if config.score.backend == "local":
        wanted.append(("score", paths.reward or paths.base, True, grids.score))
    other = config.generate.backend != "local" or judge_model(config) != paths.instruct
    if has_judge(config) and judge_backend(config) == "local" and other:
        wanted.append(("judge", judge_model(config) or paths.base, False, grids.judge))
    first = begins_with(config)
    if config.sft.enabled or "policy" in first:
        start = paths.base if config.sft.start_from == "base" else paths.instruct or paths.base
        wanted.append(("train sft", start, False, grids.train))
    if config.preference.enabled and config.preference.start_from != "sft":
        start = paths.base if config.preference.start_from == "base" else paths.instruct or paths.base
        wanted.append(("train preference", start, False, grids.train))
    if config.reward.enabled or "reward" in first:
        start = paths.base if config.reward.start_from == "base" else paths.reward or paths.base
        wanted.append(("train rm", start, True, grids.train))
    seen: dict[tuple, Loading] = {}
    made = []
    for role, where, reward, grid in wanted:
        contents, note = _contents(config, role, where, reward, files)
        phase = role.split()[0]
        own = phase in ("generate", "score") and getattr(config, phase).topology != PhaseTopology()
        where_set = f"{phase}.topology" if own else "topology"
        virtual = config.topology.virtual_stages if phase == "train" else 1
        contents.shape.check_topology(grid.tp, grid.pp, **grid.uneven_stages, virtual_stages=virtual, where=where_set)
        chunks = stage_chunks(contents.shape, grid, virtual)
        key = (where, reward, grid.tp, grid.pp, virtual, *grid.uneven_stages.values())
        if key not in seen:
            layers = [[layer for chunk in stage for layer in chunk] for stage in chunks]
            seen[key] = loading(contents, contents.places(reward=reward), grid.tp, layers)
        stages = stage_plans(config, role, contents.shape, reward, grid, seen[key], dtype, gpu, contents.dtype)
        made.append(ModelPlan(role, where, contents.shape, reward, grid, seen[key], stages, contents, chunks, note))
    return made


def _contents(config: RunConfig, role: str, where: str, reward: bool, files: bool) -> tuple[Contents, str]:
    """What a model's folder holds, and a note on what of it is not here."""
    try:
        folder = ModelFolder.open(where, metadata_only=not files)
    except (CheckpointError, ConfigError):
        if files or config.run.name not in sizes() or resolve(where, metadata_only=True).exists():
            raise
        # Not here yet: the released layout of a model of that name.
        shape = sizes()[config.run.name]
        head = reward and role != "train rm" and where != config.models.base
        return planned(shape, resolve(where), reward=head), "not here; planned from the released layout"
    # A reward model may start from a language model, with a fresh head; one that the run trains first is like Base.
    if role != "train rm" and not (role == "score" and config.models.reward is None):
        folder.require(reward=reward)
    if not files and not any_weights(folder):
        return folder.contents, "metadata alone, no weights"
    survey(folder)
    return folder.contents, ""
