"""What documents tell people to type: the lines in their blocks, and whether each of them can be typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from pathlib import Path

import pytest

from nemo_sdg import cli, resources
from nemo_sdg.config import RunConfig, flatten, load, override

ROOT = Path(__file__).resolve().parents[1]
OURS = ("make", "nemo-sdg", "torchrun", "sbatch")
_SETTING = re.compile(
    r"`((?:models|topology|generate|score|judge|select|revise|data|sft|reward|preference|evaluate|budget|keep|hardware|expect"
    r"|run)\.[a-z0-9_.]+)"
)
_PATH = re.compile(r"(?<![\w/.-])((?:examples|conf|recipes|tests|nemo_sdg)/[\w/]*(?:\.[a-z]+)?)")


def lines(text: str) -> list[str]:
    """The lines of the blocks that name no language: what is typed."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [line for language, block in blocks if not language for line in block.splitlines()]


def commands(text: str) -> list[str]:
    """Those that begin with something of ours."""
    return [line for line in lines(text) if line.split(" ")[0] in OURS and " " in line]


def inline(text: str) -> list[str]:
    """Commands within sentences and tables."""
    return re.findall(r"`(nemo-sdg [a-z][^`]*)`", text)


def verb_words(line: str) -> list[str] | None:
    """The words after `nemo-sdg` or `-m nemo_sdg`, and what run.sbatch makes of its own; None for other commands."""
    words = shlex.split(line)
    if words[0] == "nemo-sdg":
        return words[1:]
    if words[0] == "sbatch":
        recipe, out, *settings = words[words.index("examples/slurm/run.sbatch") + 1 :]
        return ["run", recipe, *settings, "--out", out]
    return words[words.index("nemo_sdg") + 1 :] if "nemo_sdg" in words else None


def options(verb: str, capsys: pytest.CaptureFixture) -> set[str]:
    assert cli.main([verb, "--help"]) == 0, verb
    return set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))


def check(line: str, capsys: pytest.CaptureFixture, forks: Collection[str] = ()) -> None:
    """Fails where a verb, an option, a recipe or a setting of the line does not exist, or a value is not allowed.

    Args:
        forks: folders that other lines fork; their run.yaml counts as a recipe.
    """
    verb, *words = verb_words(line)
    if verb == "VERB":
        return
    used = {word.strip("[]") for word in words if word.strip("[").startswith("--")}
    assert used <= options(verb, capsys), line
    settings = [word for word in words if "=" in word and not word.startswith(("-", "["))]
    if verb in ("run", "plan", "stage", "show") and not any("RECIPE" in word for word in words):
        recipe = next(word for word in words if not word.startswith("-") and word not in cli.STAGES)
        if recipe in {f"{fork}/run.yaml" for fork in forks}:
            recipe = "tiny"
        assert recipe in resources.recipes(), line
        load(recipe, settings)
    elif "KEY=VALUE" not in line:
        override(RunConfig(), settings)


def unknown_settings(text: str) -> list[str]:
    """Settings that the text names and nobody has."""
    keys = set(flatten(RunConfig()))
    keys |= {key.rpartition(".")[0] for key in keys}
    named = [key for key in _SETTING.findall(text) if not key.endswith((".yaml", ".jsonl"))]
    return [key for key in named if key not in keys and not key.startswith("reward.outputs.")]  # whose names are free


def paths(text: str) -> list[str]:
    """The files and folders of this repository that the text names."""
    return _PATH.findall(text)
