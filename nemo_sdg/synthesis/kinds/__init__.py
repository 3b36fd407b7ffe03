"""The kinds of prompts, by name. `plan` says what a kind is, `steps` what kinds are made of.

"Report" is the Nemotron-4 340B Technical Report, arXiv 2406.11704; numbers such as 3.2.1 are its sections.
"""

from nemo_sdg.synthesis.kinds import (
    closed_qa,
    dialogues,
    incapable,
    instruction_following,
    open_qa,
    problems,
    topic_following,
    topics,
    writing,
)
from nemo_sdg.synthesis.kinds.plan import Ask, Item, Kind, World, finished, gather, prompt_of
from nemo_sdg.synthesis.kinds.topics import with_own

TOPICS = topics.KIND
"""Comes before the others: its items are what they begin with."""
_ALL = (
    open_qa.KIND,
    writing.KIND,
    closed_qa.KIND,
    problems.problems("math"),
    problems.problems("python"),
    instruction_following.KIND,
    dialogues.TWO_TURN,
    dialogues.DIALOGUE,
    topic_following.KIND,
    incapable.KIND,
)
KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}

__all__ = ["KINDS", "TOPICS", "Ask", "Item", "Kind", "World", "finished", "gather", "prompt_of", "with_own"]
