"""Recipes that bring rules: what names a rule, and that settings alone do not continue such a run."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from nemo_sdg.config import Recipe, RunConfig, load, load_recipe, rule_digests
from nemo_sdg.errors import ConfigError, StoreError
from nemo_sdg.store import Run

RECIPE = """
    import re
    from nemo_sdg.config import Recipe, RunConfig
    from nemo_sdg.quality import Drop, Keep

    WORDS = {"sorry", "cannot"}
    SLACK = 0

    def bad(text):
        return any(word in WORDS for word in text.split()) or re.search("as an AI", text)

    def polite(row, context):
        return Drop("an apology") if bad(row.response) else Keep()

    def at_most(limit, unit="characters"):
        def short(row, context, slack=SLACK):
            return Drop(f"more than {limit} {unit}") if len(row.response) > limit + slack else Keep()
        return short

    def mine():
        return Recipe(RunConfig(), (polite, at_most(40)))
"""


def digests(tmp_path: Path, *changes: tuple[str, str]) -> dict[str, str]:
    text = textwrap.dedent(RECIPE)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    (folder / "mine.py").write_text(text)
    return rule_digests(load_recipe(str(folder / "mine.py")).rules)


def test_a_rule_is_named_by_its_source_and_by_all_that_it_uses(tmp_path: Path):
    plain = digests(tmp_path)
    assert list(plain) == ["polite", "short"] and plain == digests(tmp_path)
    assert plain == digests(tmp_path, ("RunConfig(), (", "RunConfig(),  # settings\n        ("))
    for rule, change in [
        ("polite", ('"an apology"', '"apology"')),
        ("polite", ('"cannot"', '"can not"')),
        ("polite", ('"as an AI"', '"as a model"')),
        ("short", ("at_most(40)", "at_most(41)")),
        ("short", ('"characters"', '"letters"')),
        ("short", ("SLACK = 0", "SLACK = 1")),
        ("short", ("> limit", ">= limit")),
    ]:
        changed = digests(tmp_path, change)
        assert {name for name in plain if plain[name] != changed[name]} == {rule}, change


def test_a_rule_that_cannot_be_named_is_refused(tmp_path: Path):
    for old, new, said in [
        ("at_most(40)", "polite", "two rules have one name"),
        ("at_most(40)", "eval('lambda row, context: None')", "no Python source"),
        ("WORDS = {", "WORDS = object() or {", "cannot be written down, found object"),
    ]:
        with pytest.raises(ConfigError) as caught:
            digests(tmp_path, (old, new))
        assert said in str(caught.value)


class Longer:
    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, row, context):
        return self.limit


def test_an_object_that_is_called_is_named_by_its_call_and_what_it_holds():
    assert rule_digests([Longer(1)]) == rule_digests([Longer(1)]) != rule_digests([Longer(2)])
    assert list(rule_digests([Longer(1)])) == ["Longer"]


def test_words_change_the_settings_and_leave_the_rules(tmp_path: Path):
    file = tmp_path / "07_mine.py"  # a number before the name is no part of it
    file.write_text(textwrap.dedent(RECIPE))
    recipe = load_recipe(str(file), ["generate.samples=7"])
    assert isinstance(recipe, Recipe) and recipe.config.generate.samples == 7 and len(recipe.rules) == 2
    assert load(str(file)) == RunConfig() and load_recipe("tiny").rules == ()


def test_a_run_with_rules_goes_on_with_its_recipe_and_with_nothing_else(tmp_path: Path):
    config, out = load("tiny"), tmp_path / "run"
    rules = {"polite": "a" * 16, "short": "b" * 16}

    def opened(some: dict | None) -> Run:
        run = Run.open(out, config, writer=True, rules=some)
        run.close()
        return run

    first = opened(rules)
    assert opened(rules).fingerprint == first.fingerprint != Run(out, config, False, None).fingerprint
    for other, said in [(None, "asked: unset"), ({**rules, "short": "c" * 16}, "the rule short")]:
        with pytest.raises(StoreError) as caught:
            opened(other)
        assert said in str(caught.value) and "with the recipe that has its rules" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(out / "run.yaml"))
    assert "found polite, short" in str(caught.value) and "give the Python recipe" in str(caught.value)
    out = tmp_path / "plain"
    opened(None)
    with pytest.raises(StoreError, match="the rule polite"):
        opened(rules)
    assert load_recipe(str(out / "run.yaml")).config == config
