"""What a plan reads, and what it refuses before anything is asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nemo_sdg import resources
from nemo_sdg.config import PROMPT_KINDS, Synthesis
from nemo_sdg.errors import ConfigError, UserError
from nemo_sdg.synthesis.kinds import KINDS
from nemo_sdg.synthesis.plans import Plan

BRIEF = "field: banking\ndescription: About banks.\nlanguage: en\n"


def plan(folder: Path, more: str = "", round: int = 0, **settings) -> Plan:
    (folder / "brief.yaml").write_text(BRIEF + more, encoding="utf-8")
    given = {"brief": str(folder / "brief.yaml"), "kinds": {"open_qa": 4.0}, **settings}
    return Plan.load(Synthesis(**given), seed=1, round=round)


def test_the_kinds_of_the_settings_are_those_that_there_are():
    assert tuple(KINDS) == PROMPT_KINDS


def test_a_plan_holds_what_was_asked_for_in_a_fixed_order(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.txt").write_text("A text.")
    (tmp_path / "docs/b.txt").write_bytes(b"\xff")
    rows = [{"prompt": "One?"}, {"prompt": "Two?"}, {"prompt": "One?"}, {"no": 1}]
    (tmp_path / "seeds.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = plan(
        tmp_path, "documents: docs\nseeds: seeds.jsonl\nmust: [is calm]\n", turns=2, per_ask=3,
        kinds={"closed_qa": 2.0, "open_qa": 4.0, "math": 1.0},
    )  # fmt: skip
    assert [(kind.name, world.count) for kind, world in made.worlds] == [("open_qa", 4), ("closed_qa", 2), ("math", 1)]
    assert made.topics.topics == 100 and made.worlds[0][1].turns == 2 and made.worlds[0][1].per_ask == 3
    assert [d.text for d in made.worlds[1][1].documents] == ["A text."]
    assert made.worlds[0][1].seeds == ("One?", "Two?")
    assert [fault.line for fault in made.faults] == [0, 3, 4]  # the file that is not UTF-8, the row again, no prompt
    assert made.checks[-1].reason == "must: is calm"


def test_topics_are_only_asked_for_where_a_kind_needs_them(tmp_path):
    assert plan(tmp_path, kinds={"math": 3.0}).topics.topics == 0
    assert plan(tmp_path, kinds={"math": 3.0, "writing": 1.0}, topics=7).topics.topics == 7


def test_the_identity_follows_everything_that_decides_the_prompts(tmp_path):
    templates = tmp_path / "prompts"
    shutil.copytree(resources.root() / "conf/prompts", templates)
    first = plan(tmp_path, templates=str(templates)).identity()
    assert first == plan(tmp_path, templates=str(templates)).identity() == plan(tmp_path).identity()
    file = templates / "open_qa.yaml"
    file.write_text(file.read_text().replace("Think up", "Invent"))
    others = [
        plan(tmp_path, templates=str(templates)).identity(),
        plan(tmp_path, "tone: dry\n").identity(),
        plan(tmp_path, kinds={"open_qa": 5.0}).identity(),
        plan(tmp_path, round=1).identity(),
        plan(tmp_path, topics=9).identity(),
        plan(tmp_path, turns=4).identity(),
    ]
    (tmp_path / "d.txt").write_text("one")
    others.append(plan(tmp_path, "documents: d.txt\n").identity())
    (tmp_path / "d.txt").write_text("two")
    others.append(plan(tmp_path, "documents: d.txt\n").identity())
    assert len({first, *others}) == 1 + len(others)


@pytest.mark.parametrize(
    ("more", "settings", "message"),
    [
        ("", {"kinds": {"closed_qa": 2.0}}, "closed_qa asks about documents, found none; add documents: PATH"),
        ("", {"topics": 0}, "open_qa asks about topics, found none; add topics to the brief"),
        ("documents: nowhere\n", {}, "no documents, found nothing there"),
        ("seeds: nowhere.jsonl\n", {}, "cannot read the rows"),
        ("seeds: brief.yaml\n", {}, "no seed can be used, found .*brief.yaml:1: broken JSON"),
        ("language_: x\n", {}, "unknown key 'language_'.*language"),
        ("must_not: [no links]\n", {}, "says no twice"),
        ("", {"templates": "nowhere"}, "cannot read the languages"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_asked(tmp_path, more, settings, message):
    with pytest.raises(UserError, match=message):
        plan(tmp_path, more, **settings)


def test_any_file_of_the_templates_is_checked_if_its_kind_is_wanted(tmp_path):
    templates = tmp_path / "prompts"
    shutil.copytree(resources.root() / "conf/prompts", templates)
    wrong = {"dialogue": ("topic", "dialogue"), "judge": ("line", "open_qa"), "instructions": ("text", "math")}
    for name, (word, kind) in wrong.items():
        file = templates / f"{name}.yaml"
        before = file.read_text()
        file.write_text(before.replace(f"{{{{ {word} }}}}", f"{{{{ {word}e }}}}"))
        with pytest.raises(ConfigError, match=f"{name}.yaml, .*unknown name '{word}e'.*nearest is {word}"):
            plan(tmp_path, templates=str(templates), kinds={kind: 1.0})
        file.write_text(before)
