"""The verb `serve`: everything that can be refused without a model is refused, then the ranks start.

Nothing here imports torch before that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.survey import survey
from nemo_sdg.config import RunConfig, validate
from nemo_sdg.console import Console
from nemo_sdg.errors import ConfigError, TopologyError
from nemo_sdg.hub.address import Address, is_address
from nemo_sdg.session import rank, start_once, world_size

if TYPE_CHECKING:
    from nemo_sdg.parallel.mesh import Mesh

KEY_ENV = "NEMO_SDG_SERVE_KEY"


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What the server is started with."""

    policy: str | None
    reward: str | None
    policy_name: str | None
    reward_name: str | None
    """What the models are called where it is not as their folders."""
    host: str
    port: int
    key_env: str | None
    """Environment variable that holds the key; None is KEY_ENV, and no key where that is not set."""
    most_waiting: int
    """Answers that may wait beside those in the slots."""
    grace_s: float

    @property
    def folders(self) -> dict[str, str]:
        given = {"policy": self.policy, "reward": self.reward}
        return {role: folder for role, folder in given.items() if folder is not None}


def serve(config: RunConfig, serving: Serving) -> int:
    """Serves until it is told to stop; returns the exit status."""
    from nemo_sdg.serve import server

    validate(config)
    names = _names(serving)
    _check_models(config, serving)
    key = _key(serving.key_env)
    if rank() == 0:
        server.bind(serving.host, serving.port).close()  # a port that is taken is told before the models are loaded

    def work(mesh: Mesh, console: Console) -> int:
        from nemo_sdg.serve.rank import work

        return work(config, serving, names, key, mesh, console)

    return start_once(
        work,
        topology=config.topology,
        timeout_s=config.run.timeout_s,
        threads=config.run.threads,
        loading="loading Megatron",
        modules=("nemo_sdg.serve.rank",),
    )


def _names(serving: Serving) -> dict[str, str]:
    """What each role's model is called. Raises ConfigError."""
    names = {}
    for role, folder in serving.folders.items():
        names[role] = getattr(serving, f"{role}_name") or _folder_name(folder)
    if not names:
        raise ConfigError("there is nothing to serve", expected="--policy, --reward or both")
    if len(set(names.values())) < len(names):
        raise ConfigError(
            "both models have the same name", found=names["policy"], expected="two names",
            way_out="give --policy-name or --reward-name",
        )  # fmt: skip
    return names


def _folder_name(folder: str) -> str:
    """`instruct` for models/instruct, `owner/name` for hf://owner/name@revision."""
    if is_address(folder):
        return Address.parse(folder).repo
    return Path(folder.partition(":")[2] if folder.startswith("package:") else folder).resolve().name


def _check_models(config: RunConfig, serving: Serving) -> None:
    """Raises CheckpointError or TopologyError for what cannot be loaded on these ranks."""
    topology = config.topology
    if world_size(topology) != topology.tp * topology.pp:
        raise TopologyError(
            "the server is one replica of its models", where="command line", found=f"{world_size(topology)} ranks",
            expected=f"--tp {topology.tp} x --pp {topology.pp} = {topology.tp * topology.pp}",
            way_out="raise --tp or --pp, or start a server of its own for each replica",
        )  # fmt: skip
    for role, path in serving.folders.items():
        folder = ModelFolder.open(path)
        folder.require(reward=role == "reward")
        folder.shape.check_topology(topology.tp, topology.pp, where="command line")
        survey(folder)


def _key(variable: str | None) -> str | None:
    """Raises ConfigError if the variable was named and holds no key."""
    key = os.environ.get(variable or KEY_ENV, "").strip()
    if not key and variable is not None:
        raise ConfigError(
            "there is no key", where=f"environment variable {variable}", found="nothing in it",
            expected="the key that clients must send", way_out="set it, or leave --key-env out",
        )  # fmt: skip
    return key or None
