"""Verifiable instructions: what can be asked of a response so that a program sees whether it was done.

After IFEval (Zhou et al. 2023, arXiv 2311.07911; google-research, instruction_following_eval/instructions.py), whose
semantics they have unless a kind says otherwise, with Japanese and other scripts without spaces added.

A spec is a plain mapping, {"kind": "words", "relation": "at_least", "count": 60}, which a row can hold and `check`
reads.
"""

from nemo_sdg.synthesis.instructions.checking import KINDS, check, checked, relaxed
from nemo_sdg.synthesis.instructions.drawing import compatible, draw, load_wordings
from nemo_sdg.synthesis.instructions.keywords import language_spec
from nemo_sdg.synthesis.instructions.kind import Spec

__all__ = [
    "KINDS",
    "Spec",
    "check",
    "checked",
    "compatible",
    "draw",
    "language_spec",
    "load_wordings",
    "relaxed",
]
