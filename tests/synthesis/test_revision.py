"""The words in which a revision is asked for."""

from __future__ import annotations

import pytest

from nemo_sdg.config import ATTRIBUTES
from nemo_sdg.errors import ConfigError
from nemo_sdg.quality.revision import Shortfall
from nemo_sdg.synthesis.revision import Request


def told(*found: Shortfall, template: str | None = None) -> str:
    return Request(template)(shortfalls=list(found), prompt="Add 1 and 2.", response="4")


def test_the_shipped_text_names_what_is_wrong_and_nothing_else():
    text = told(Shortfall("correctness", 2.26, 3.0, "minimum"), Shortfall("verbosity", 3.5, 2.0, "maximum"))
    lines = text.splitlines()
    assert len(lines) == 4
    assert "correctness: 2.3, and at least 3.0" in lines[1] and "correct what is wrong" in lines[1]
    assert "length: 3.5, and at most 2.0" in lines[2] and "Be brief" in lines[2]
    assert "helpful" not in text and "{" not in text


@pytest.mark.parametrize("kind", ["minimum", "maximum"])
@pytest.mark.parametrize("name", [*ATTRIBUTES, "scalar"])
def test_there_are_words_for_every_limit(name, kind):
    assert len(told(Shortfall(name, 1.0, 2.0, kind)).splitlines()) == 3


def test_a_text_of_the_users():
    template = "{{ prompt }} Not {{ response }}{% for s in shortfalls %} ({{ s.name }}){% endfor %}."
    assert told(Shortfall("scalar", 1.0, 2.0, "minimum"), template=template) == "Add 1 and 2. Not 4 (scalar)."


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ propmt }}", "unknown name 'propmt'.* the nearest is prompt"),
        ("{{ prompt", "cannot be read"),
        ("{{ prompt.__class__.__mro__ }}", "cannot be rendered"),
        ("{% for s in shortfalls %}{{ s.nmae }}{% endfor %}", "cannot be rendered"),
        ("{{ prompt + 1 }}", "cannot be rendered, found TypeError"),
        ("{{ prompt | random }}", "cannot be read"),
        ("{{ lipsum() }}", "unknown name 'lipsum'"),
        ("{{ shortfalls.append(1) }}", "cannot be rendered, found SecurityError"),
        ("{% if not shortfalls %}x{% endif %}", "renders to nothing"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_sentence_before_anything_is_asked(template, said):
    with pytest.raises(ConfigError, match=f"(?s){said}") as caught:
        Request(template)
    assert "revise.request" in str(caught.value)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 1 / (response | length - 2) }}", "cannot be rendered, found ZeroDivisionError"),
        ("{% if response == 'x' %}x{% endif %}", "renders to nothing"),
    ],
)
def test_a_row_that_a_template_does_not_fit_is_one_sentence_too(template, said):
    with pytest.raises(ConfigError, match=said):
        Request(template)(shortfalls=[], prompt="x", response="12")


def test_the_digest_is_of_the_text():
    assert Request(None).digest == Request(None).digest != Request("{{ prompt }}").digest
