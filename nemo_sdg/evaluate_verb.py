"""`evaluate`: a policy, a reward model or both on held-out rows, without a run. Tables on the terminal, all figures as JSON.

What is wrong with the words, the files, the folders or the topology is found before torch is imported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.survey import survey
from nemo_sdg.config import RunConfig, override
from nemo_sdg.console import Console
from nemo_sdg.errors import ConfigError
from nemo_sdg.evaluation import files
from nemo_sdg.parallel.topology import data_parallel_size
from nemo_sdg.records import row_files
from nemo_sdg.session import rank, start_once, world_size
from nemo_sdg.store import check_result, commit_file

if TYPE_CHECKING:
    from nemo_sdg.parallel.mesh import Mesh

_GROUPS = ("evaluate.", "generate.", "score.", "reward.outputs")
_NEEDS = {
    "rewardbench": ("reward",), "helpsteer2": ("reward",), "exact_match": ("policy",), "instructions": ("policy",),
    "win_rate": ("policy", "against", "reward"),
}  # fmt: skip
"""Which models the file of each setting is for."""
_WORDS = {"policy": "policy to ask", "reward": "reward model to ask", "against": "policy to compare with"}


def evaluate(
    config: RunConfig, words: list[str], *, policy: str | None, reward: str | None, against: str | None, out: Path | None
) -> int:
    """Measures the models on the files of `config.evaluate` and returns the exit status.

    Args:
        words: `key=value` over these settings, so that a server may answer or score in the place of a folder.
        policy, reward, against: folders; a server needs none.
    Raises:
        UserError: there is nothing to measure, or the words, files, folders and ranks do not go together.
    """
    for word in words:
        if "=" in word and not word.startswith(_GROUPS):
            expected = "one of " + ", ".join(f"{group.removesuffix('.')}.*" for group in _GROUPS)
            raise ConfigError("not a setting of evaluation", where=word.partition("=")[0], expected=expected)
    config = override(config, words)
    models = {"policy": policy, "reward": reward, "against": against}
    _check_models(config, models)
    if out is not None:
        check_result(out, [file for path in config.evaluate.files.values() for file in row_files(path)], [], ".json")
    data_parallel_size(config.topology, world_size(config.topology))
    held_out = files.read(config)
    console = Console(speaks=rank() == 0)
    for note in held_out.notes:
        console.say(note)

    def work(mesh: Mesh, console: Console) -> int:
        found = _measured(config, models, held_out, mesh, console)
        if mesh.writer:
            from nemo_sdg.evaluation import tables

            tables.show(found, console)
            if out is not None:
                commit_file(out, (json.dumps(found, indent=2, allow_nan=False) + "\n").encode())
                console.say(f"all figures are in {out}")
        return 0

    return start_once(
        work,
        topology=config.topology,
        loading="loading Megatron",
        modules=("nemo_sdg.evaluation.measures", "nemo_sdg.engine.backends.local", "nemo_sdg.parallel.phases"),
    )


def _check_models(config: RunConfig, models: dict[str, str | None]) -> None:
    """Each file has its models, each model its file, and each folder is what it is taken for."""
    asked = config.evaluate.files
    if not asked:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in _NEEDS)
        raise ConfigError("there is nothing to measure", where="command line", expected=f"at least one of {options}")
    served = {"policy": config.generate.backend, "reward": config.score.backend}
    for name, needed in _NEEDS.items():
        for kind in needed if name in asked else ():
            if models[kind] is None and served.get(kind) != "endpoint":
                option = f"--{name.replace('_', '-')}"
                needs = " ".join(f"--{kind} DIR" for kind in needed)
                raise ConfigError(
                    f"{option} has no {_WORDS[kind]}", where="command line", expected=f"{option} {asked[name]} {needs}"
                )
    given = {kind: folder for kind, folder in models.items() if folder is not None}
    for kind, folder in given.items():
        uses = [name for name, needed in _NEEDS.items() if kind in needed]
        if not set(uses) & set(asked):
            options = " or ".join(f"--{name.replace('_', '-')} FILE" for name in uses)
            raise ConfigError("nothing is asked of the model", where=f"--{kind}", found=folder, expected=options)
        if served.get(kind) == "endpoint":
            group = {"policy": "generate", "reward": "score"}[kind]
            found = f"{folder} and {group}.backend=endpoint"
            raise ConfigError("a server and a folder are both named", where=f"--{kind}", found=found, expected="one of them")
    for kind, folder in given.items():
        if served.get(kind) != "hf":
            opened = ModelFolder.open(folder)
            opened.require(reward=kind == "reward")
            opened.shape.check_topology(config.topology.tp, config.topology.pp, where="command line")
            survey(opened)


def _measured(
    config: RunConfig, models: dict[str, str | None], rows: files.HeldOut, mesh: Mesh, console: Console
) -> dict[str, Any]:
    """All figures, on every rank: first what the policies say, then what the reward model scores."""
    from nemo_sdg.engine.backends.choosing import Role
    from nemo_sdg.engine.residents import Residents
    from nemo_sdg.evaluation import held_out, measures
    from nemo_sdg.evaluation.win_rate import win_rate
    from nemo_sdg.parallel.agree import on_writer
    from nemo_sdg.parallel.phases import Phases

    residents, phases, everywhere = Residents(several=False), Phases.lay(config, mesh), Phases.everywhere(mesh).generate
    policy = Role("policy", config, models["policy"] or "", residents=residents)
    reward = Role("reward", config, models["reward"] or "", residents=residents)
    against = Role("policy", config, models["against"] or "", given=False, residents=residents)
    said: dict[str, str] = {}
    theirs: dict[str, str] = {}
    named: dict[str, dict[str, str]] = {}
    if rows.prompts:
        named["policy"] = on_writer(mesh, policy.identity)
        ask = lambda here: held_out.answers(policy, rows.prompts, here, console, "asking the policy")  # noqa: E731
        said = held_out.on_phase(mesh, phases.generate, ask)
    if rows.win_rate:
        named["against"] = on_writer(mesh, against.identity)
        ask = lambda here: held_out.answers(against, rows.win_rate, here, console, "asking the other policy")  # noqa: E731
        theirs = held_out.on_phase(mesh, everywhere, ask)
    groups = [measures.labelled(rows), measures.compared(rows), measures.replies(rows, said), measures.replies(rows, theirs)]
    judged: list[list[Any]] = [[] for _ in groups]
    if any(groups):
        named["reward"] = on_writer(mesh, reward.identity)
        rate = lambda here: held_out.scores(reward, groups, here, console, "asking the reward model")  # noqa: E731
        judged = held_out.on_phase(mesh, phases.score, rate)
    found = {**measures.of_policy(rows, said), **measures.of_reward(rows, config, *judged[:2])}
    if rows.win_rate:
        sides = zip((said, theirs), judged[2:])
        found["win_rate"] = win_rate(*(measures.compared_as(rows, config, *side) for side in sides))
    models_told = {kind: {"folder": models[kind], **identity} for kind, identity in named.items()}
    return {**found, "models": models_told, "files": config.evaluate.files}
