"""The words in which a revision is asked for."""

from __future__ import annotations

import pytest

from nemo_sdg.config import ATTRIBUTES
from nemo_sdg.errors import ConfigError
from nemo_sdg.quality.revision import Shortfall
from nemo_sdg.synthesis.revision import Request


def told(*found: Shortfall, broken: tuple = (), template: str | None = None) -> str:
    return Request(template)(shortfalls=list(found), broken=list(broken), prompt="Add 1 and 2.", response="4")


def test_the_shipped_text_names_what_is_wrong_and_nothing_else():
    text = told(Shortfall("correctness", 2.26, 3.0, "minimum"), Shortfall("verbosity", 3.5, 2.0, "maximum"))
    lines = text.splitlines()
    assert len(lines) == 4
    assert "correctness: 2.3, and at least 3.0" in lines[1] and "correct what is wrong" in lines[1]
    assert "length: 3.5, and at most 2.0" in lines[2] and "Be brief" in lines[2]
    assert "helpful" not in text and "{" not in text


def test_broken_requirements_are_told_in_the_words_of_the_one_who_asks_for_them():
    broken = (
        {"reason": "must: names the fee", "line": "names the fee"},
        {"reason": "instruction not followed: words", "line": "Use at most 9 words."},
    )
    first, *lines, last = told(broken=broken).splitlines()
    assert lines == ["- must: names the fee", "- instruction not followed: words (Use at most 9 words.)"]
    assert "marks" not in first and "new answer" in last
    both = told(Shortfall("correctness", 2.0, 3.0, "minimum"), broken=broken).splitlines()
    assert "marks from 0 to 4" in both[0] and both[2:4] == lines and len(both) == 5


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
        ("{{ prompt", "the template cannot be read"),
        ("{{ prompt.__class__.__mro__ }}", "cannot be rendered"),
        ("{% for s in shortfalls %}{{ s.nmae }}{% endfor %}", "cannot be rendered.*nmae"),
        ("{{ 1 / 0 }}", "cannot be rendered.*ZeroDivisionError"),
        ("{{ prompt + 1 }}", "cannot be rendered.*TypeError"),
        ("{% include 'x' %}", "takes in another file"),
        ("{{ [1, 2, 3] | random }}", "the template cannot be read.*random"),
        ("{{ lipsum() }}", "unknown name 'lipsum'"),
        ("{# {{ prompt }} #}", "renders to nothing"),
        ("{{ shortfalls.append(1) }}", "cannot be rendered, found SecurityError"),
        ("{% if not shortfalls %}x{% endif %}", "renders to nothing"),
        ("<extra_id_1>{{ prompt }}", "what no user says.*<extra_id_1>"),
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
        ("{% if response == 'x' %}x{% endif %}", "what no user says, found nothing"),
    ],
)
def test_a_row_that_a_template_does_not_fit_is_one_sentence_too(template, said):
    with pytest.raises(ConfigError, match=said):
        Request(template)(shortfalls=[], prompt="x", response="12")


def test_the_digest_is_of_the_text():
    assert Request(None).digest == Request(None).digest != Request("{{ prompt }}").digest
