"""Which of two responses the judge names, in which language it is asked, and what rows say of their checks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from nemo_sdg import resources
from nemo_sdg.errors import ConfigError, RowError
from nemo_sdg.synthesis.answers import choice
from nemo_sdg.synthesis.brief import Brief
from nemo_sdg.synthesis.judging import Comparison
from nemo_sdg.synthesis.languages import Language
from nemo_sdg.synthesis.requirements import (
    NOT_FOLLOWED, Questions, Requirement, checks_of, followed, named, questions_of, requirements
)  # fmt: skip

FOLDER = "package:conf/prompts"
BRIEF = Brief(field="banking", description="About banks.", language="en", must=("is calm",), must_not=("is rude",))
EN = Language.load(FOLDER, "en")
TURNS = [{"role": "user", "content": "What is the rate of this loan?"}]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("A", "a"), ("b", "b"), ("A.", "a"), ("**B**", "b"), ("[[A]]", "a"), ("(B) It is right.", "b"), ("A\nIt is right.", "a"),
        ("A is better, since it is short.", "a"), ("Response B is better.", "b"), ("response a", "a"), ("Answer: A", None),
        ("B, because A is wrong.", "b"), ("A - it does all that was asked", "a"), ("Ａ", "a"), ("Aです。", "a"), ("回答B", "b"), ("A\nB is worse.", "a"),
        ("「B」のほうが正確です。", "b"), ("A better one would be B.", None), ("A tie", None), ("Tie.", "tie"), ("TIE: both are good", "tie"),
        ("Neither", "tie"), ("引き分け。", "tie"), ("どちらとも言えません", "tie"), ("Tied", None), ("Both are good.", "tie"),
        ("Best is A", None), ("I think A", None), ("", None), ("C", None), ("AB", None), ("a1", None), ("Response AB", None),
    ],
)  # fmt: skip
def test_the_beginning_of_an_answer_names_one_of_two(answer, found):
    ties = yaml.safe_load((resources.root() / "conf/prompts/judge.yaml").read_text())["lists"]["ties"]
    assert choice(answer, [*ties["en"], *ties["ja"]]) == found


def test_the_judge_is_asked_in_the_language_of_the_conversation():
    comparison = Comparison(FOLDER)
    japanese = [{"role": "user", "content": "この融資の金利はいくらですか。"}]
    english, other = comparison.ask(TURNS, "one", "two", {}), comparison.ask(japanese, "one", "two", {})
    assert "=== Response A ===\none" in english and "=== Response B ===\ntwo" in english and TURNS[0]["content"] in english
    assert "=== 回答A ===\none" in other and "引き分け" in other
    assert "回答A" in comparison.ask(TURNS, "one", "two", {"language": "ja"})
    assert "Response A" in comparison.ask(TURNS, "one", "two", {"language": "xx"})
    assert "Response A" in comparison.ask([{"role": "user", "content": "5"}], "one", "two", {"language": 5})


def test_a_comparison_may_use_the_brief_and_is_named_by_its_text(tmp_path):
    folder = Path(shutil.copytree(resources.root() / "conf/prompts", tmp_path / "prompts"))
    file = folder / "judge.yaml"
    text = file.read_text()
    file.write_text(text.replace("A conversation and two responses", "In {{ field }}: a conversation and two responses"))
    assert Comparison(str(folder), BRIEF).ask(TURNS, "x", "y", {}).startswith("In banking: a")
    assert Comparison(str(folder)).ask(TURNS, "x", "y", {}).startswith("In : a")
    digests = {Comparison(str(folder), BRIEF).digest, Comparison(str(folder)).digest, Comparison(FOLDER).digest}
    assert len(digests) == 3 and Comparison(FOLDER).digest in digests
    file.write_text(text.replace("{{ first }}", "{{ frist }}"))
    with pytest.raises(ConfigError, match="compare.en: the template has an unknown name 'frist'.*nearest is first"):
        Comparison(str(folder))
    file.write_text(text.partition("lists:")[0])
    with pytest.raises(ConfigError, match="ties.en is missing"):
        Comparison(str(folder))


def test_questions_are_named_by_their_texts_and_the_brief():
    one = Questions(FOLDER, BRIEF, EN)
    other = Questions(FOLDER, Brief(field="banking", description="Other.", language="en"), EN)
    assert one.digest == Questions(FOLDER, BRIEF, EN).digest != other.digest


def test_each_question_is_asked_once():
    checks = requirements(BRIEF, EN)
    assert [check.reason for check in questions_of(checks)] == ["off topic", "must: is calm", "must not: is rude"]
    assert questions_of([*checks, *checks]) == questions_of(checks)
    same_line = [Requirement("is calm", "a"), Requirement("is calm", "b", False, None, "must_not")]
    assert len(questions_of(same_line)) == 2


def test_instructions_are_followed_when_all_are():
    specs = [{"kind": "words", "relation": "at_most", "count": 2}, {"kind": "include", "texts": ["x"]}]
    own = [Requirement("x", f"{NOT_FOLLOWED}: {spec['kind']}", True, spec) for spec in specs]
    assert [followed(own, text) for text in ("x y", "y", "x y z")] == [True, False, False]
    of_the_brief = requirements(Brief(field="x", description="y", language="en", must=("at most 2 words",)), EN)
    assert followed(of_the_brief, "It is of a kind.") is None and followed([], "x") is None
    assert followed([*own, *of_the_brief], "x y") is True


def test_checks_in_a_row():
    checks = requirements(BRIEF, EN)
    columns = {"checks": [check.to_row() for check in checks]}
    assert checks_of(columns, "row") == checks and checks_of({}, "row") == checks_of({"checks": None}, "row") == []
    for wrong in ("none", [3], {"a": 1}):
        with pytest.raises(RowError, match="row 7: the column checks is no list of checks"):
            checks_of({"checks": wrong}, "row 7")
    assert named(["off topic", "other"], columns, "row") == [
        {"reason": "off topic", "line": "banking"}, {"reason": "other", "line": "other"}
    ]  # fmt: skip
