"""What the README tells people to type exists: verbs, options, recipes, settings, make targets, folders."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nemo_sdg import cli, resources
from nemo_sdg.config import RunConfig, load
from nemo_sdg.config.values import flatten

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if re.match(r"(make|nemo-sdg|torchrun) ", line)]
INLINE = re.findall(r"`(nemo-sdg [a-z][^`]*)`", README)


def verb_words(line: str) -> list[str] | None:
    """The words after `nemo-sdg` or `-m nemo_sdg`; None for other commands."""
    words = shlex.split(line)
    if words[0] == "nemo-sdg":
        return words[1:]
    return words[words.index("nemo_sdg") + 1 :] if "nemo_sdg" in words else None


def options(verb: str, capsys: pytest.CaptureFixture) -> set[str]:
    assert cli.main([verb, "--help"]) == 0, verb
    return set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 9 and len(INLINE) >= 7


@pytest.mark.parametrize("line", sorted({line for line in COMMANDS + INLINE if verb_words(line)}))
def test_verbs_options_recipes_and_settings_exist(line, capsys):
    verb, *words = verb_words(line)
    if verb == "VERB":
        return
    known = options(verb, capsys)
    used = {word.strip("[]") for word in words if word.strip("[").startswith("--")}
    assert used <= known, line
    settings = [word for word in words if "=" in word and not word.startswith(("-", "["))]
    if verb in ("run", "plan", "stage") and "RECIPE" not in words:
        recipe = next(word for word in words if not word.startswith("-") and word not in cli.STAGES)
        assert recipe in resources.recipes(), line
        load(recipe, settings)


def test_settings_in_the_text_exist():
    keys = set(flatten(RunConfig()))
    keys |= {key.rpartition(".")[0] for key in keys}
    named = set(
        re.findall(r"`((?:models|topology|generate|score|judge|select|revise|data|sft|reward|preference|evaluate|budget|keep|hardware|expect|run)\.[a-z0-9_.]+)", README)
    )
    for key in named:
        assert key in keys or key.endswith((".yaml", ".jsonl")), key


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    used = {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    used |= set(re.findall(r"`make ([a-z]+)`", README))
    assert {"demo", "test"} <= used <= targets


def test_paths_in_the_text_exist():
    for path in re.findall(r"(?<![\w/])(examples/[\w/]+(?:\.(?:py|md|jsonl|sbatch|sh))?|recipes/)", README):
        assert (ROOT / path).exists(), path


def test_every_verb_is_in_the_table():
    table = set(re.findall(r"^\| `nemo-sdg (\w+)", README, flags=re.MULTILINE))
    assert table == {command.name or command.callback.__name__ for command in cli.app.registered_commands}
