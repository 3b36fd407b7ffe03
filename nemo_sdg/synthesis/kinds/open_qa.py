"""Open questions: some per topic, then each made longer and more definite: first drafts come out short (3.2.1)."""

from __future__ import annotations

from nemo_sdg.synthesis.kinds.plan import Kind
from nemo_sdg.synthesis.kinds.steps import Lists, Text, per_topic

QUESTIONS = Lists("questions", per_topic)
QUESTION_SLOTS = {"topic": "x", "n": 3, "examples": ["x"]}

KIND = Kind(
    "open_qa",
    lambda world: (QUESTIONS, Text("refine", lambda world, item: {"question": item.text, "topic": item.topic})),
    slots={"questions": QUESTION_SLOTS, "refine": {"question": "x", "topic": "x"}},
)
