"""`show`: every setting has a meaning, and each line says its value, where that is from and what it would be."""

from __future__ import annotations

import pytest

from nemo_sdg import cli
from nemo_sdg.config import RunConfig, flatten
from nemo_sdg.config.meanings import meanings


def said(capsys, *words: str) -> list[str]:
    assert cli.main(["show", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_setting_has_a_meaning_and_nothing_else_has_one():
    told = dict(meanings())
    assert not [key for key, text in told.items() if len(text) < 8]
    entries = {key for key in flatten(RunConfig()) if key not in told}
    groups = {key.rpartition(".")[0] for key in entries}
    assert groups <= set(told), "what is no setting is an entry of one that holds names"
    assert told["sft.steps"] == told["reward.steps"] == "Optimizer steps."
    assert told["preference.iterations"] and "preference.steps" in told  # its own, and what it takes over


def test_the_recipes_and_what_they_are(capsys):
    lines = said(capsys)
    assert any(line.split()[0] == "tiny" and "make demo" in line for line in lines if line.split())


def test_a_value_says_where_it_is_from_and_what_it_would_be(capsys):
    lines = said(capsys, "tiny", "sft.steps=3", "sft.", "select.minimum.")
    assert "sft.steps = 3   (command line; default 100)" in lines
    assert "sft.learning_rate = 0.0003   (recipe; default 1.0e-05)" in lines
    assert "sft.clip_grad = 1.0" in lines
    assert lines[lines.index("sft.steps = 3   (command line; default 100)") + 1] == "    Optimizer steps."
    assert "select.minimum.helpfulness = 2.8   (recipe; default 3.0)" in lines
    assert not any(line.startswith(("reward.", "run.")) for line in lines)


def test_only_what_differs_from_another_recipe(capsys):
    lines = said(capsys, "tiny", "--diff", "nemotron4_340b")
    assert "topology.tp = 1   (nemotron4_340b: 8)" in lines
    assert not any(line.startswith("sft.beta1") for line in lines)
    assert not [line for line in said(capsys, "tiny", "--diff", "tiny") if line]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["tiny", "sfft"], "no setting begins like this, found sfft, expected the beginning of a key; the nearest is sft"),
        (["tiny", "sft.stepps=3"], "unknown key 'sft.stepps'; the nearest valid key is sft.steps"),
        (["tinny"], "there is no recipe of this name"),
        (["tiny", "--diff", "tinny"], "there is no recipe of this name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_exist_is_refused_with_what_is_nearest(capsys, words, sentence):
    assert cli.main(["show", *words]) == 2
    assert sentence in capsys.readouterr().err
