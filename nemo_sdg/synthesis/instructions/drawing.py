"""Instructions for one prompt: kinds that go together, parameters, and the words to ask for them."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Iterable

from nemo_sdg.synthesis.instructions.checking import KINDS
from nemo_sdg.synthesis.instructions.kind import AT_LEAST, Kind, Pool, Spec
from nemo_sdg.synthesis.languages import Language
from nemo_sdg.synthesis.templates import Templates
from nemo_sdg.synthesis.text import folded

LISTS = ("starts", "ends", "options", "sections", "postscripts")
_EXAMPLES = {
    "relation": AT_LEAST, "count": 2, "text": "x", "texts": ["x", "y"], "paragraph": 1, "language": "x",
    "scripts": ["x"], "share": 0.5, "marks": ["x"], "common": ["x"],
}  # fmt: skip


def compatible(one: str, other: str) -> bool:
    """Whether instructions of two kinds can both be followed, whatever their parameters."""
    return one != other and _allows(KINDS[one], KINDS[other]) and _allows(KINDS[other], KINDS[one])


def load_wordings(folder: str, language: str) -> Templates:
    """How the instructions are asked for: conf/prompts/instructions.yaml. Raises ConfigError."""
    slots = {name: {key: _EXAMPLES[key] for key in kind.parameters} for name, kind in KINDS.items() if kind.draw}
    return Templates.load(folder, "instructions", language, slots, brief={}, lists=LISTS)


def draw(
    chance: random.Random, count: int, wordings: Templates, language: Language, *, keywords: Iterable[str] = (),
    prompt: str = "", but: Iterable[str] = (),
) -> list[tuple[Spec, str, str]]:  # fmt: skip
    """Up to `count` instructions that can be followed together: (spec, words, digest of their template) each.

    Args:
        keywords: words that instructions may ask for or forbid. Left out are those that hold a comma, and those that
            stand in another one, in the prompt or in a phrase that an instruction asks for: nobody can write "interest
            rate" and not "interest".
        prompt: what they are joined to.
        but: kinds that are not drawn.
    """
    pool = Pool(chance, language, wordings.lists, _apart(keywords, prompt, wordings), prompt)
    names = [name for name, kind in KINDS.items() if kind.draw and (language.cased or not kind.cased)]
    names = [name for name in names if name not in set(but)]
    chance.shuffle(names)
    drawn: list[tuple[Spec, str, str]] = []
    for name in names:
        if len(drawn) == count:
            break
        if all(compatible(name, spec["kind"]) for spec, _, _ in drawn):
            parameters = KINDS[name].draw(pool)
            if parameters is not None:
                template = wordings.draw(name, chance)
                drawn.append(({"kind": name, **parameters}, template.render(parameters), template.digest))
    return drawn


def _allows(one: Kind, other: Kind) -> bool:
    return (
        not one.claims & other.claims
        and other.name not in one.excludes
        and (one.only is None or other.name in one.only)
    )


def _apart(keywords: Iterable[str], prompt: str, wordings: Templates) -> list[str]:
    words = [word for word in dict.fromkeys(keywords) if not set(word) & set(",、，")]
    others = folded("\n".join([prompt, *(phrase for name in LISTS for phrase in wordings.lists[name])]))
    lower = [folded(word) for word in words]
    within = {a if a in b else b for a, b in combinations(lower, 2) if a in b or b in a}
    return [word for word, low in zip(words, lower) if low not in within and low not in others]
