"""Settings of what is kept, what goes back to be revised, and how long candidates are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""The five HelpSteer attributes in the order of the reward model's outputs 4 to 8."""

NUM_REWARD_OUTPUTS = 9
"""Outputs of the reward head (NVIDIA/NeMo-Aligner: examples/nlp/data/steerlm/common.py)."""

OUTPUTS = {name: slot for slot, name in enumerate(ATTRIBUTES, start=4)}
"""The output of a reward model that gives each attribute, where its folder says nothing else."""

MISSING = -100.0
"""HelpSteer's mark for an attribute that nobody scored: never a number to compare, to average or to learn."""


@dataclass(kw_only=True)
class Select:
    minimum: Dict[str, float] = field(default_factory=lambda: {"helpfulness": 3.0})
    """Lowest score kept, per attribute (NVIDIA's demo: helpfulness 3.0)."""
    maximum: Dict[str, float] = field(default_factory=dict)
    """Highest score kept, per attribute."""
    weights: Dict[str, float] = field(default_factory=lambda: dict(zip(ATTRIBUTES, (0.3, 0.74, 0.46, 0.47, -0.33))))
    """Weights of the scalar (model card of Nemotron-4-340B-Reward)."""
    minimum_scalar: Optional[float] = None
    """Lowest weighted scalar kept."""
    per_prompt: Optional[int] = None
    """Best responses kept for one prompt, by the scalar; null keeps all that pass."""
    finished: bool = True
    """Drop a response that max_tokens or the context cut off: it would teach to stop in mid-sentence."""
    unique: bool = True
    """Drop a response whose text equals one already kept for the same prompt."""
    checks: bool = True
    """Drop a response that breaks the brief or an instruction of its prompt, by the first reason in its column `broken`.
    The judge is asked about what no program can check. Without a brief and data.checks there is nothing to check."""
    percentile: Optional[float] = None
    """Keep rows whose scalar is at or above this percentile (0 to 100, linear interpolation) of the rows that passed
    the rules which look at one row alone."""
    length_free: bool = False
    """Rank rows by what is left of the scalar when its least-squares line over log(characters) is taken away."""
    near_duplicates: Optional[float] = None
    """Drop a response whose shingles have at least this Jaccard similarity with those of a better one, of any prompt;
    of short responses the prompts must be as similar, too."""
    shingle: int = 5
    """Words of a shingle; where words are not spaced, twice as many characters."""
    decontaminate: List[str] = field(default_factory=list)
    """Evaluation files (.jsonl, .jsonl.gz); a row that shares `ngram` words in a row with one of their texts is
    dropped."""
    ngram: int = 13
    """Words in a row that two texts must share to count as one (GPT-3's 13); where words are not spaced, twice as many
    characters."""
    balance: Dict[str, float] = field(default_factory=dict)
    """Largest share of the kept rows with the same value of a column, by column, for example {topic: 0.2}. A target that
    the shares do not divide is kept whole: what rounding leaves over goes one row each to the best groups."""
    pii: str = "off"
    """Personal data (e-mail, phone, card, IBAN, national numbers): off, drop (the row goes), or redact (the response
    says [EMAIL] instead; a row goes if its prompt has any)."""
    pii_engine: str = "rules"
    """Who finds personal data: rules (numbers and addresses, by form and check digits), or presidio (these, and names
    and places by a model of spaCy's; the extra of `pip install nemo-sdg[presidio]`)."""
    pii_model: str = "en_core_web_lg"
    """presidio's model of spaCy's: a package that is installed or a folder; its name begins with the language."""
    likeness: Optional[str] = None
    """The user's own rows (.jsonl, .jsonl.gz): how like them the kept ones are, and how many copy one."""
    maximum_copies: Optional[float] = None
    """Refuse a selection in which more than this share of the rows copy one of `likeness`; null only counts them."""
    target: Optional[int] = None
    """Accepted rows of a round, exactly: candidates are made wave by wave until so many pass, or the budget is spent.
    null is one wave, and whatever passes."""


@dataclass(kw_only=True)
class Revise:
    """Rows that nearly pass go back to the policy, which is told what scored low; the best version of each is kept."""

    passes: int = 0
    """Times that a row may go back; 0 revises nothing."""
    margin: float = 1.0
    """How far at most each score, and the scalar, may lie outside its limits for a row that goes back."""
    samples: int = 1
    """Revisions of one row in each pass."""
    request: Optional[str] = None
    """What the policy is told, as a jinja2 template; null is the shipped text. It may use `shortfalls` (each with name,
    score, limit, kind: minimum or maximum), `broken` (requirements, each with line and reason), `prompt` (the user's last
    text) and `response`."""


@dataclass(kw_only=True)
class Budget:
    """What a round with `select.target` may take until it stops short of the target. No wave is begun once so much is
    spent; the last one may go beyond it. It may be raised when a run goes on."""

    candidates: Optional[int] = None
    """Responses of a round, revisions too; null is 100 for each row of the target."""
    tokens: Optional[int] = None
    """Generated tokens of a round. Only `nemo-sdg serve` tells them of a server's answers; of others they count as none."""
    hours: Optional[float] = None
    """Hours that all starts of the command together may spend on the candidates of a round; a fork begins at 0."""
