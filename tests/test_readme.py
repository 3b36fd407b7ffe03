"""What the README tells people to type exists: verbs, options, recipes, settings, make targets, folders."""

from __future__ import annotations

import re

import pytest
import typed
from typed import ROOT

from nemo_sdg import cli

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS, INLINE = typed.commands(README), typed.inline(README)


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 9 and len(INLINE) >= 7


@pytest.mark.parametrize("line", sorted({line for line in COMMANDS + INLINE if typed.verb_words(line)}))
def test_verbs_options_recipes_and_settings_exist(line, capsys):
    typed.check(line, capsys)


def test_settings_in_the_text_exist():
    assert typed.unknown_settings(README) == []


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    used = {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    used |= set(re.findall(r"`make ([a-z]+)`", README))
    assert {"demo", "test"} <= used <= targets


def test_paths_in_the_text_exist():
    named = typed.paths(README)
    assert "recipes/" in named and len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_verb_is_in_the_table():
    table = set(re.findall(r"^\| `nemo-sdg (\w+)", README, flags=re.MULTILINE))
    assert table == {command.name or command.callback.__name__ for command in cli.app.registered_commands}
