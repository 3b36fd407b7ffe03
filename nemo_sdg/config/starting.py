"""What a run trains from Base before its first round, because nothing else was named."""

from __future__ import annotations

from nemo_sdg.config.settings import RunConfig
from nemo_sdg.errors import ConfigError

GROUPS = {"policy": "sft", "reward": "reward"}
"""The settings that each of the two models is trained by."""


def begins_with(config: RunConfig) -> list[str]:
    """policy and reward, those that a run needs on its own ranks and was not given."""
    given = {"policy": config.models.instruct, "reward": config.models.reward}
    backends = {"policy": config.generate.backend, "reward": config.score.backend}
    return [kind for kind in GROUPS if given[kind] is None and backends[kind] == "local"]


def check_start(config: RunConfig) -> None:
    """Raises ConfigError when there is nothing to train a first model on."""
    needed = begins_with(config)
    if "policy" in needed and not config.data.sft:
        raise ConfigError(
            "there is nothing to train the first policy on", where="models.instruct", found="null, and no data.sft",
            expected="dialogues to learn from", way_out="name files in data.sft, or a checkpoint in models.instruct",
        )  # fmt: skip
    pairs = config.reward.pairs
    people = bool(config.data.preference) if pairs else bool(config.data.helpsteer2 or config.data.labelled)
    if "reward" in needed and not people:
        files = "data.preference" if pairs else "data.helpsteer2"
        raise ConfigError(
            "there is nothing to train the first reward model on", where="models.reward",
            found=f"null, and no {files}", expected="rows that people judged",
            way_out=f"set {files}, or name a checkpoint in models.reward",
        )  # fmt: skip
    if config.score.backend == "hf" and config.models.reward is None:
        raise ConfigError(
            "there is no model to score with", where="models.reward", found="null with score.backend=hf",
            expected="a sequence-classification model", way_out="name its folder or hf:// address",
        )  # fmt: skip
