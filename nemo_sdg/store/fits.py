"""The fits of a round: the folder that each leaves, and the settings and rows that it is made with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nemo_sdg.config import RunConfig, Training
from nemo_sdg.store.seals import read_json

POLICY, REWARD = "policy", "reward"
"""Folders of the models that a round hands on; what lies in others was a step towards the policy."""
_FOLDER = re.compile(rf"{POLICY}|{REWARD}|sft|preference-\d+")


@dataclass(frozen=True)
class Fit:
    folder: str
    """In the round's."""
    task: str
    """The group of settings, and the kind of fit."""
    iteration: int = 0
    """Of several fits of one task, counted from 0."""

    def settings(self, config: RunConfig) -> Training:
        return getattr(config, self.task)

    def dataset(self, config: RunConfig) -> str:
        """What it learns from: datasets/<dataset>.jsonl."""
        return config.reward.rows if self.task == "reward" else self.task


def fits(config: RunConfig) -> list[Fit]:
    """What a round trains, in order. The policy is what the last of its fits has made:

    sft/              SFT, where preference tuning goes on from it
    preference-1/     the first of several iterations of preference tuning, and so on
    policy/
    reward/
    """
    steps = [("sft", 0)] if config.sft.enabled else []
    if config.preference.enabled:
        steps += [("preference", iteration) for iteration in range(config.preference.iterations)]
    names = [f"{task}-{iteration + 1}" if task == "preference" else task for task, iteration in steps[:-1]]
    made = [Fit(name, *step) for name, step in zip([*names, POLICY], steps)]
    return made + ([Fit(REWARD, "reward")] if config.reward.enabled else [])


EVALUATION = "evaluation.json"
"""What a round leaves of its evaluation; "gate" in it says of each kind that had to be better whether it was
(`evaluation.gate`)."""


def goes_on(round_folder: Path, kind: str) -> bool:
    """Whether a round has trained a model of this kind which later rounds may begin with; nobody has said no before the round is
    evaluated."""
    if not (round_folder / kind).is_dir():
        return False
    gate = (read_json(round_folder / EVALUATION) or {}).get("gate") or {}
    return gate.get(kind, {}).get("accepted", True)


def made_by_a_fit(folder: str) -> bool:
    """Whether a folder of this name in a round's is a fit's, of whatever settings."""
    return _FOLDER.fullmatch(folder) is not None
