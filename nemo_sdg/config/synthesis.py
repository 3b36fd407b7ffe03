"""Settings of the prompts that the policy makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Optional

PROMPT_KINDS = (
    "open_qa", "writing", "closed_qa", "math", "python", "instruction_following", "two_turn", "dialogue",
    "topic_following", "incapable",
)  # fmt: skip
"""The kinds of prompts that can be made: a file of this name in conf/prompts/ has the texts of each."""


@dataclass(kw_only=True)
class Synthesis:
    """Prompts that the policy makes for a domain brief."""

    brief: Optional[str] = None
    """YAML file of the domain brief, for example package:conf/briefs/finance.yaml; null makes no prompts."""
    kinds: Dict[str, float] = field(default_factory=dict)
    """Prompts wanted of each kind in a round."""
    topics: int = 100
    """Topics that the policy is to name, besides those of the brief; 0 takes the brief's alone."""
    per_ask: int = 5
    """Questions or tasks that one list is asked for."""
    turns: int = 3
    """User turns of a dialogue."""
    max_tokens: Optional[int] = None
    """Tokens per answer while prompts are made; null is generate.max_tokens."""
    templates: str = "package:conf/prompts"
    """Folder of the prompt templates."""
    piece_words: Optional[int] = 1500
    """Words (characters, where words are not spaced) of a document that a question is asked about at most: a longer
    document is cut where a paragraph or a sentence ends. They and an answer must fit the context. null cuts none."""
    own_prompts: bool = False
    """Also take the prompts of data.prompts. Answers to them are held to the brief as those to made ones are, and to the
    checks that a row brings."""
