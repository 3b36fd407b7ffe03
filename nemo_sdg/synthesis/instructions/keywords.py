"""Which words and letters a response has, and which not (IFEval's keywords), and what must be absent from it."""

from __future__ import annotations

import re
import unicodedata

from nemo_sdg.synthesis.instructions.kind import Kind, Pool, Spec, compared, kind
from nemo_sdg.synthesis.languages import Language
from nemo_sdg.synthesis.text import keyword, scripts, words

PATTERNS = {
    "email": re.compile(r"[\w.+-]+[@＠][\w-]+(?:\.[\w-]+)+"),
    # International; area code in brackets; the national forms that begin with 0, and the North American one.
    "phone": re.compile(
        r"(?<![A-Za-z0-9.-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){1,4}\d{2,4}|\(\d{2,4}\)[ .-]?\d{2,4}[ .-]\d{3,4}"
        r"|0\d{1,3}[ .-]\d{1,4}[ .-]\d{3,4}|0\d{9,10}|\d{3}[.-]\d{3}[.-]\d{4})(?![A-Za-z0-9-])"
    ),
    "url": re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE),
}
"""What an `absent` instruction forbids, by name."""
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)


def count_of(text: str, response: str) -> int:
    """How often a keyword stands in a response."""
    return len(keyword(text).findall(response))


def in_language(response: str, spec: Spec) -> bool:
    """Whether enough letters outside of code are of the language's scripts; where the language lists common words, one
    word in twelve is one of them (of texts of twelve words and more), which tells languages of one script apart."""
    response = _CODE.sub(" ", response)
    found = scripts(response)
    if not found:
        return True  # numbers and signs are of every language
    inside = sum(name in spec["scripts"] for name in found)
    if inside < spec["share"] * len(found) or (spec["marks"] and not set(found) & set(spec["marks"])):
        return False
    spoken = [word.casefold() for word in words(response)]
    common = sum(word in spec["common"] for word in spoken)
    return not spec["common"] or len(spoken) < 12 or common * 12 >= len(spoken)


def language_spec(language: Language) -> dict:
    """The instruction to answer in a language."""
    return {
        "kind": "language", "language": language.name, "scripts": list(language.scripts), "share": language.share,
        "marks": list(language.marks), "common": list(language.common),
    }  # fmt: skip


def _absent(response: str, spec: Spec) -> bool:
    return not PATTERNS[spec["what"]].search(unicodedata.normalize("NFKC", response))


def _texts(low: int, high: int):
    def draw(pool: Pool) -> dict | None:
        taken = pool.take(pool.number(low, high))
        return taken and {"texts": taken}

    return draw


def _draw_frequency(pool: Pool) -> dict | None:
    taken, relation = pool.take(1), pool.relation()
    return taken and {"text": taken[0], "relation": relation, "count": pool.number(2, 4)}


def _draw_letters(pool: Pool) -> dict | None:
    letters, relation = pool.language.letters, pool.relation()
    if not letters:
        return None
    return {"text": pool.chance.choice(letters), "relation": relation, "count": pool.number(4, 20, 2)}


def _draw_language(pool: Pool) -> dict:
    return {key: value for key, value in language_spec(pool.language).items() if key != "kind"}


KINDS: tuple[Kind, ...] = (
    kind("include", lambda r, spec: all(count_of(t, r) for t in spec["texts"]), {"texts": list}, _texts(1, 3)),
    kind("exclude", lambda r, spec: not any(count_of(t, r) for t in spec["texts"]), {"texts": list}, _texts(1, 3)),
    kind(
        "keyword_frequency", lambda r, spec: compared(count_of(spec["text"], r), spec),
        {"text": str, "relation": str, "count": int}, _draw_frequency,
    ),
    kind(
        "letter_frequency", lambda r, spec: compared(r.lower().count(spec["text"].lower()), spec),
        {"text": str, "relation": str, "count": int}, _draw_letters, claims="length",
        # Keywords have letters of their own, and so have the words that these ask for.
        excludes="include keyword_frequency start_with end_with sections postscript language", cased=True,
    ),
    kind(
        "language", in_language,
        {"language": str, "scripts": list, "share": (int, float), "marks": list, "common": list}, _draw_language,
    ),
    kind("absent", _absent, {"what": str}, None),
)  # fmt: skip
"""`absent` is for the requirements of a brief; nobody asks for a response without telephone numbers by the way."""
