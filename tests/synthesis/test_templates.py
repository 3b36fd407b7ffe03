"""Templates: the shipped ones render in both languages, and mistakes are found before anything is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_sdg import resources
from nemo_sdg.errors import ConfigError
from nemo_sdg.synthesis.brief import Brief
from nemo_sdg.synthesis.instructions import KINDS as INSTRUCTIONS
from nemo_sdg.synthesis.instructions import load_wordings
from nemo_sdg.synthesis.kinds import KINDS, TOPICS
from nemo_sdg.synthesis.languages import Language
from nemo_sdg.synthesis.requirements import Questions
from nemo_sdg.synthesis.templates import Templates

FOLDER = "package:conf/prompts"
BRIEF = {"field": "banking", "terms": ("rate", "fee")}


def load(folder: Path, text: str, slots: dict, **more) -> Templates:
    (folder / "kind.yaml").write_text(text, encoding="utf-8")
    return Templates.load(str(folder), "kind", "en", slots, brief=BRIEF, **more)


def one(folder: Path, text: str, **slots) -> Templates:
    return load(folder, "templates:\n  ask:\n    en: |\n      " + text + "\n", {"ask": slots})


@pytest.mark.parametrize("brief", ["finance", "manufacturing_ja", "general"])
@pytest.mark.parametrize("kind", [TOPICS, *KINDS.values()], ids=lambda kind: kind.name)
def test_every_shipped_template_renders_with_real_values(kind, brief):
    told = Brief.load(f"package:conf/briefs/{brief}.yaml")
    templates = kind.load(FOLDER, told, Language.load(FOLDER, told.language))
    assert set(templates.templates) == set(kind.slots)
    for name, texts in templates.templates.items():
        for template in texts:
            rendered = template.render({**told.slots(), **kind.slots[name]})
            assert rendered and "{{" not in rendered and "{%" not in rendered and len(template.digest) == 16


def test_every_file_of_prompts_is_read_by_somebody():
    files = {file.stem for file in (resources.root() / "conf/prompts").glob("*.yaml")}
    assert files == {*KINDS, "topics", "instructions", "judge", "languages", "revise"}
    brief = Brief.load("package:conf/briefs/general.yaml")
    for code in ("en", "ja"):
        language = Language.load(FOLDER, code)
        assert load_wordings(FOLDER, code).templates.keys() == {n for n, kind in INSTRUCTIONS.items() if kind.draw}
        assert Questions(FOLDER, brief, language)


def test_a_template_sees_its_names_and_those_of_the_brief(tmp_path):
    templates = one(tmp_path, "{{ n }} of {{ field }}: {{ terms | join(', ') }} {{ topic }}", n=3, topic="x")
    assert templates["ask"].render({**BRIEF, "n": 2, "topic": "{{ n }}"}) == "2 of banking: rate, fee {{ n }}"


def test_values_that_do_not_fit_are_one_sentence(tmp_path):
    """The example has an entry; a brief without seeds has none."""
    templates = one(tmp_path, "{{ examples[0] }}", examples=["x"])
    with pytest.raises(ConfigError, match="kind.yaml, ask.en: the template cannot be rendered, found UndefinedError"):
        templates["ask"].render({"examples": []})


def test_the_digest_is_the_texts(tmp_path):
    first, again, other = (one(tmp_path, text)["ask"].digest for text in ("a {{ field }}", "a {{ field }}", "b"))
    assert first == again != other
    assert other == "0263829989b6fd95"  # printf 'b\n' | sha256sum


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ topik }}", r"kind.yaml, ask.en: the template has an unknown name 'topik'.*expected one of.*nearest is topic"),
        ("{% if false %}{{ fild }}{% endif %}x", "unknown name 'fild'.*nearest is field"),
        ("{{ topic", "cannot be read.*in line"),
        ("{{ topic | nonsense }}", "cannot be read.*nonsense"),
        ("{{ topic | random }}", "cannot be read.*random"),
        ("{{ lipsum() }}", "unknown name 'lipsum'"),
        ("{{ topic.words }}", "cannot be rendered.*words"),
        ("{{ topic.__class__ }}", "cannot be rendered.*(unsafe|SecurityError)"),
        ("{{ n + topic }}", "cannot be rendered: found TypeError|cannot be rendered, found TypeError"),
        ("{% include 'other' %}", "takes in another file"),
        ("{% if n > 5 %}x{% endif %}", "renders to nothing"),
    ],
)
def test_a_mistake_is_named_with_file_template_and_language(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        one(tmp_path, text, topic="x", n=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("templates: {ask: {ja: x}}", "ask.en is missing, found ja"),
        ("templates: {}", "ask.en is missing"),
        ("templates: {ask: {en: x}, aks: {en: x}}", "unknown key 'aks'.*nearest valid key is ask"),
        ("template: {ask: {en: x}}", "unknown key 'template'.*templates"),
        ("templates: {ask: {en: []}}", "the list is empty"),
        ("templates: {ask: {en: 3}}", "entry 1 is no text"),
        ("templates: [ask]", "not a mapping"),
        ("templates: {ask: {en: x}}\nlists: {levels: {en: []}}", "the list is empty"),
        ("templates: {ask: {en: x}}\nlists: {}", "levels.en is missing"),
        ("templates: {ask: {en: x}}\nlists: {levels: {en: [a, a]}}", "an entry stands twice"),
        ("- a", "not a mapping of templates"),
        ("a: b: c", "cannot read the templates"),
        ("templates: {ask: {en: x}, ask: {en: y}}", "stands twice"),
    ],
)
def test_a_file_that_is_not_as_its_kind_needs_it(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text, {"ask": {}}, lists=("levels",) if "lists" in text else ())


def test_a_file_that_is_absent_or_in_another_encoding(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the templates.*No such file"):
        Templates.load(str(tmp_path), "kind", "en", {}, brief={})
    (tmp_path / "kind.yaml").write_bytes("templates: {ask: {en: caf\xe9}}".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot read the templates, found byte 25 is not UTF-8"):
        Templates.load(str(tmp_path), "kind", "en", {"ask": {}}, brief={})
