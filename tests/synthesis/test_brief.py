"""Domain briefs: the shipped ones load, and what is wrong in one is said before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_sdg import resources
from nemo_sdg.errors import ConfigError
from nemo_sdg.synthesis.brief import Brief
from nemo_sdg.synthesis.languages import Language
from nemo_sdg.synthesis.requirements import requirements

SHIPPED = sorted(file.stem for file in (resources.root() / "conf/briefs").glob("*.yaml"))
LEAST = "field: banking\ndescription: About banks.\nlanguage: en\n"


def brief(folder: Path, text: str) -> Brief:
    (folder / "brief.yaml").write_text(text, encoding="utf-8")
    return Brief.load(str(folder / "brief.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_brief_loads_and_its_lines_become_checks(name: str):
    told = Brief.load(f"package:conf/briefs/{name}.yaml")
    language = Language.load("package:conf/prompts", told.language)
    checks = requirements(told, language)
    assert len(checks) == 2 + len(told.must) + len(told.must_not)
    assert len({check.reason for check in checks}) == len(checks)


def test_the_shipped_fields():
    assert {"medicine", "finance", "retail", "manufacturing", "general"} < set(SHIPPED)
    languages = {Brief.load(f"package:conf/briefs/{name}.yaml").language for name in SHIPPED}
    assert languages == {"en", "ja"}


def test_paths_count_from_the_briefs_folder(tmp_path):
    told = brief(tmp_path, LEAST + "seeds: s.jsonl\ndocuments: /d\n")
    assert told.seeds == str(tmp_path / "s.jsonl") and told.documents == "/d"
    assert "seeds" not in told.slots() and told.slots()["field"] == "banking"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEAST + "persona: [x]", "unknown key 'persona'.*nearest valid key is personas"),
        (LEAST + "topics: []", "topics: the list is empty"),
        (LEAST + "topics:", "topics: the list is empty"),
        (LEAST + "topics: rates", "topics: not a list"),
        (LEAST + "topics: [rates, 3]", "topics: entry 2 is no text"),
        (LEAST + "topics: [yes]", "topics: entry 1 is no text, found True"),
        (LEAST + "topics: [a, ' ']", "entry 2 is no text"),
        (LEAST + "topics: [a, a]", "an entry stands twice"),
        (LEAST + "tone: ''", "tone has the wrong type"),
        ("field: x\nlanguage: en", "description is missing"),
        ("field: [x]\ndescription: x\nlanguage: en", "field has the wrong type"),
        (LEAST + "field: again", "stands twice"),
        ("just text", "not a mapping of brief"),
        ("", "not a mapping of brief"),
        ("a: !!python/object:os.system x", "cannot read the brief"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        brief(tmp_path, text)


def test_another_encoding_and_no_file(tmp_path):
    (tmp_path / "b.yaml").write_bytes("field: 銀行\n".encode("shift_jis"))
    with pytest.raises(ConfigError, match="b.yaml: cannot read the brief, found byte 7 is not UTF-8"):
        Brief.load(str(tmp_path / "b.yaml"))
    with pytest.raises(ConfigError, match="No such file"):
        Brief.load(str(tmp_path / "none.yaml"))


def test_a_language_without_texts(tmp_path):
    with pytest.raises(ConfigError, match="no texts for this language, found jp, expected one of en, ja.*nearest, ja"):
        Language.load("package:conf/prompts", "jp")
    lines = "xx:\n  name: X\n  cased: false\n  scripts: [LATIN]\n  share: 0.5\n  positive: [y]\n  negative: [n]\n"
    for text, message in (
        (lines + "  openers: []", "xx, openers: the list is empty"),
        (lines, "openers is missing"),
        (lines + "  openers: [a]\n  opener: [b]", "unknown key 'opener'.*openers"),
        (lines.replace("0.5", "1.5") + "  openers: [a]", "share is out of range"),
        ("xx: name", "a language is a block of keys"),
    ):
        (tmp_path / "languages.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            Language.load(str(tmp_path), "xx")
    (tmp_path / "languages.yaml").write_text(lines + "  openers: [a]")
    assert Language.load(str(tmp_path), "xx").openers == ("a",)
