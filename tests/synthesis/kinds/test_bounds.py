"""The questions that a plan promises at most: no generator is asked more, however it answers."""

from __future__ import annotations

import pytest
from synthesis_world import items_of, name_of, reply, topics_of, world

from nemo_sdg.config import Synthesis
from nemo_sdg.synthesis.kinds import KINDS, TOPICS, with_own
from nemo_sdg.synthesis.kinds.bounds import most_questions
from nemo_sdg.synthesis.plans import Plan


def willing(messages) -> str:
    """Says yes to everything, lists as much as anybody asks for, and never the same twice."""
    text, name = messages[-1]["content"], name_of(messages)
    if "Say Yes or No first" in text:
        return "Yes."
    if "numbered list" in text:
        return "\n".join(f"{n}. Matter {n} of {name}" for n in range(1, 60))
    return f"What about the case {name}?"


def short(messages) -> str:
    """Two entries where more are asked for."""
    return "\n".join(reply(messages).splitlines()[:4])


@pytest.mark.parametrize("count", [1, 12, 41])
@pytest.mark.parametrize("name", KINDS)
def test_no_generator_is_asked_more(name: str, count: int):
    kind = KINDS[name]
    where = world(kind, count=count)
    most, _ = most_questions(kind, where, topics_of())
    asked = [items_of(kind, where, topics_of(), answer)[2] for answer in (willing, reply, short)]
    assert max(asked) <= most <= 3 * max(asked), (asked, most)
    if name in ("open_qa", "writing", "closed_qa", "two_turn", "dialogue", "incapable", "topic_following"):
        assert asked[0] <= most <= asked[0] + asked[0] // 2 + 5


def test_topics():
    where = world(TOPICS, topics=30)
    most, items = most_questions(TOPICS, where, [])
    assert items_of(TOPICS, where, [], willing)[2] <= most <= 10 and len(with_own(where, items)) >= 30


def test_the_plan_of_a_brief_counts_all_kinds():
    settings = Synthesis(brief="package:conf/briefs/finance.yaml", kinds={"open_qa": 10, "incapable": 5}, topics=9)
    plan = Plan.load(settings, seed=1, round=0)
    alone = [Plan.load(Synthesis(**{**vars(settings), "kinds": {kind: count}}), seed=1, round=0).questions()
             for kind, count in settings.kinds.items()]  # fmt: skip
    topics = most_questions(TOPICS, plan.topics, [])[0]
    assert plan.questions() == sum(alone) - topics and topics == 1 + 3 and plan.questions() > 20
