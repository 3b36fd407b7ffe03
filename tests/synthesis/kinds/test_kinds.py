"""Every kind from topics to prompts, in English and Japanese, with a program in the generator's place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from synthesis_world import items_of, made, reply, topics_of, world

from nemo_sdg.records import Prompt
from nemo_sdg.synthesis.brief import Brief
from nemo_sdg.synthesis.documents import Document, in_pieces
from nemo_sdg.synthesis.instructions import check
from nemo_sdg.synthesis.kinds import KINDS, TOPICS, gather, with_own
from nemo_sdg.synthesis.requirements import Requirement

BOTH = pytest.mark.parametrize("language", ["en", "ja"])


@BOTH
@pytest.mark.parametrize("name", KINDS)
def test_a_kind_gives_what_was_wanted_of_it(name: str, language: str):
    prompts, dropped = made(name, language, **({"count": 4} if name == "instruction_following" else {}))
    if name != "instruction_following":  # there, first answers break what binds them
        assert len(prompts) == 12
    assert prompts and len({prompt.id for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert Prompt.from_row(prompt.to_row()) == prompt and json.loads(json.dumps(prompt.to_row())) == prompt.to_row()
        extra = prompt.extra
        assert extra["kind"] == name and extra["language"] == language and prompt.id.startswith(name + "-")
        assert extra["templates"] and all(len(digest) == 16 for digest in extra["templates"])
        checks = [Requirement.from_row(row) for row in extra["checks"]]
        assert [one.reason for one in checks[:2]] == ["not in the language of the brief", "off topic"]
        if KINDS[name].needs == "topics":
            assert extra["topic"]
        if name not in ("closed_qa",):
            assert checks[0].holds(prompt.messages[-1]["content"]), prompt.messages[-1]
    assert all(count > 0 for count in dropped.values())


@pytest.mark.parametrize("name", KINDS)
def test_the_same_answers_give_the_same_prompts(name: str):
    first, second = made(name), made(name)
    assert [p.to_row() for p in first[0]] == [p.to_row() for p in second[0]] and first[1] == second[1]


def test_nothing_depends_on_the_hash_seed():
    code = (
        "from synthesis_world import made\n"
        "print([p.to_row() for n in ('instruction_following', 'dialogue') for p in made(n)[0]])"
    )
    tests = Path(__file__).parents[2]
    told = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tests.parent,
            env={"PYTHONPATH": f"{tests}:{tests.parent}", "PYTHONHASHSEED": seed, "PATH": ""},
        )
        for seed in ("1", "2")
    ]  # fmt: skip
    assert told[0].stdout == told[1].stdout and len(told[0].stdout) > 1000, told[0].stderr


def test_topics_are_wide_then_narrow_and_the_users_own_come_first():
    where = world(TOPICS, topics=6)
    items, dropped, asked = items_of(TOPICS, where, [])
    assert asked == 1 + 3 and len(items) == 9  # three wide ones, 6 x 1.25 / 3 below each
    assert dropped == {"more entries than asked for": 4 + 3 * 4}
    brief = Brief(field="x", description="y", language="en", topics=("Mine", items[0].topic))
    found = with_own(world(TOPICS, topics=6, brief=brief), items)
    assert [item.topic for item in found[:2]] == ["Mine", items[0].topic] and len(found) == 2 + 6
    assert [item.topic for item in found].count(items[0].topic) == 1
    none = world(TOPICS, topics=0)
    assert TOPICS.begin(none, []) == [] and with_own(none, []) == []


def test_shapes_of_conversations():
    def roles(name: str, **more) -> set[str]:
        return {"".join(m["role"][0] for m in p.messages) for p in made(name, **more)[0]}

    assert roles("open_qa") == roles("writing") == roles("closed_qa") == roles("math") == roles("incapable") == {"u"}
    assert roles("two_turn") == roles("two_turn", turns=5) == {"uau"}
    assert roles("dialogue", turns=3) == {"uauau"} and roles("dialogue", turns=1) == {"u"}
    assert roles("topic_following") == {"suau"}
    assert roles("instruction_following", count=60) <= {"u", "uau"}


@BOTH
def test_users_turns_have_no_polite_openers_and_one_persona_each(language: str):
    for prompt in made("dialogue", language)[0]:
        later = [m["content"] for m in prompt.messages if m["role"] == "user"][1:]
        assert len(later) == 2 and not any(text.startswith(("Thanks", "ありがとう")) for text in later)
        brief = Brief.load(f"package:conf/briefs/{'finance' if language == 'en' else 'manufacturing_ja'}.yaml")
        assert prompt.extra["facts"]["persona"] in brief.personas
    personas = {prompt.extra["facts"]["persona"] for prompt in made("dialogue", language, count=40)[0]}
    assert len(personas) > 1


def test_what_a_model_is_asked_has_the_brief_and_the_examples_in_it():
    kind, seen = KINDS["open_qa"], []
    where = world(kind, seeds=("My own question?", "Another of mine?"))
    items_of(kind, where, topics_of(), lambda messages: seen.append(messages[-1]["content"]) or reply(messages))
    asked = [text for text in seen if "numbered list" in text]
    assert asked and all("retail banking" in text and "overdraft" in text for text in asked)
    assert all("My own question?" in text and "Another of mine?" in text for text in asked)
    assert not any("Take after them" in text for text in seen if text not in asked)


def test_documents_are_in_the_prompts_and_each_is_asked_about():
    prompts, _ = made("closed_qa")
    assert {p.extra["facts"]["document"] for p in prompts} == {"d0", "d1", "d2"}
    for prompt in prompts:
        assert f"Text {prompt.extra['facts']['document'][1]}." in prompt.messages[0]["content"]
    joins = {prompt.extra["templates"][-1] for prompt in made("closed_qa", count=40)[0]}
    assert len(joins) > 1


def test_a_prompt_about_a_piece_knows_the_document():
    documents = in_pieces([Document("long.txt", "One two three. Four five six.")], 3)
    facts = [prompt.extra["facts"] for prompt in made("closed_qa", documents=documents)[0]]
    assert {(f["document"], f["piece_of"]) for f in facts} == {(f"long.txt#{n}", "long.txt") for n in (1, 2)}


def test_terms_of_the_brief_are_keywords_when_the_generator_says_yes():
    kind = KINDS["math"]
    terms = Brief.load("package:conf/briefs/finance.yaml").terms
    items, dropped, _ = items_of(kind, world(kind, count=40), [])
    accepted = [item for item in items if item.id.startswith("term.")]
    assert 0 < len(accepted) < len(terms) and dropped["classified as no"] == len(terms) - len(accepted)
    assert all(item.facts["keyword"] in terms for item in accepted)
    unsure = lambda m: "Perhaps." if "Yes or No" in m[-1]["content"] else reply(m)  # noqa: E731
    unclear, dropped, _ = items_of(kind, world(kind), [], unsure)
    assert dropped["neither yes nor no"] == len(terms) and not [i for i in unclear if i.id.startswith("term.")]


def test_instructions_bind_as_their_form_says():
    prompts, dropped = made("instruction_following", count=200)
    forms = Counter(prompt.extra["facts"]["form"] for prompt in prompts)
    assert forms["single"] > 20 and forms["revise"] > 20 and forms["standing"] > 0
    assert dropped["the first answer breaks the standing instruction"] > 0
    kinds = set()
    for prompt in prompts:
        checks = [Requirement.from_row(row) for row in prompt.extra["checks"]]
        own = [one for one in checks if one.reason.startswith("instruction not followed: ")]
        assert 1 <= len(own) <= 3 and all(one.spec for one in own)
        kinds |= {one.spec["kind"] for one in own}
        first, last = prompt.messages[0]["content"], prompt.messages[-1]["content"]
        form = prompt.extra["facts"]["form"]
        assert all(one.line in (last if form == "revise" else first) for one in own)
        if form == "standing":
            assert all(check(one.spec, prompt.messages[1]["content"]) for one in own) and last != first
        if form == "revise":
            assert not all(check(one.spec, prompt.messages[1]["content"]) for one in own)
    assert len(kinds) >= 20


def test_a_kind_does_not_lose_an_item_without_a_reason():
    """Entries of lists = items + what was left out, at every step."""
    for name, kind in KINDS.items():
        where = world(kind, count=20)
        items = kind.begin(where, topics_of())
        for step in kind.steps(where):
            asks = list(step.ask(where, items))
            answers = [reply(ask.messages) if ask.messages else None for ask in asks]
            listed = sum(7 if a and "1. " in a else 1 for a in answers)
            items, dropped = gather(where, step, asks, answers)
            assert listed == len(items) + sum(dropped.values()), (name, step.name)


def test_answers_that_cannot_be_used_are_counted():
    bad = {"none": None, "blank": " ", "control": "1. a <extra_id_1> b", "talk": "I am sorry."}
    kind = KINDS["open_qa"]
    where = world(kind)
    step = kind.steps(where)[0]
    asks = list(step.ask(where, topics_of()))[:3] + list(step.ask(where, topics_of()))[:1]
    items, dropped = gather(where, step, asks, list(bad.values())[: len(asks)])
    assert items == []
    assert dropped == {"no answer": 2, "control piece in an answer": 1, "no list in the answer": 1}


def test_equal_texts_are_one_and_too_many_are_left_out():
    kind = KINDS["open_qa"]
    alike = lambda m: reply(m) if "numbered list" in m[-1]["content"] else "Why?"  # noqa: E731
    items, dropped, _ = items_of(kind, world(kind), topics_of(), alike)
    assert [item.text for item in items] == ["Why?"] and dropped["same as another"] == 14
    prompts, dropped = made("open_qa", count=10)
    assert len(prompts) == 10 and dropped["more than were wanted"] == 5


def test_without_topics_or_documents_there_are_no_prompts():
    for name, kind in KINDS.items():
        where = world(kind, documents=[])
        assert bool(kind.begin(where, [])) == (kind.needs == "nothing"), name
        if kind.needs != "nothing":
            assert items_of(kind, where, []) == ([], Counter(), 0)


def test_every_round_and_seed_has_prompts_of_its_own_chance():
    where = world(KINDS["dialogue"])
    again = world(KINDS["dialogue"], round=1)
    assert where.draw("a", 1).random() == world(KINDS["dialogue"]).draw("a", 1).random()
    assert len({w.draw("a", n).random() for w in (where, again) for n in range(5)}) == 10
