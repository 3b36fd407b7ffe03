"""How long a response is: words, sentences, paragraphs, characters (IFEval's length_constraints)."""

from __future__ import annotations

from nemo_sdg.synthesis.instructions.kind import AT_LEAST, EXACTLY, Kind, Pool, Spec, compared, kind
from nemo_sdg.synthesis.text import folded, paragraphs, sentences, words

_COUNTED = {"relation": str, "count": int}


def _drawn(at_least: tuple[int, int, int], at_most: tuple[int, int, int]):
    """Draws a relation and a count from (low, high, step) of that relation."""

    def draw(pool: Pool) -> dict:
        relation = pool.relation()
        return {"relation": relation, "count": pool.number(*(at_least if relation == AT_LEAST else at_most))}

    return draw


def _paragraph_starts(response: str, spec: Spec) -> bool:
    """The number of paragraphs, and the beginning of the one that the spec names (from 1)."""
    found = paragraphs(response)
    if len(found) != spec["count"]:
        return False
    return folded(found[spec["paragraph"] - 1].lstrip("\"'“‘「*")).startswith(folded(spec["text"]))


def _draw_paragraph_start(pool: Pool) -> dict | None:
    count, keyword = pool.number(2, 5), pool.take(1)
    return keyword and {"count": count, "paragraph": pool.number(1, count), "text": keyword[0]}


KINDS: tuple[Kind, ...] = (
    kind(
        "words", lambda response, spec: compared(len(words(response)), spec), _COUNTED,
        _drawn((60, 300, 20), (60, 300, 20)), claims="length",
    ),
    kind(
        "sentences", lambda response, spec: compared(len(sentences(response)), spec), _COUNTED,
        _drawn((4, 15, 1), (3, 10, 1)), claims="length",
        excludes="bullets numbered sections title postscript paragraphs paragraph_start",
    ),
    kind(
        "characters", lambda response, spec: compared(len(response.strip()), spec), _COUNTED,
        _drawn((300, 1500, 100), (300, 1500, 100)), claims="length",
    ),
    kind(
        "paragraphs", lambda response, spec: compared(len(paragraphs(response)), spec), _COUNTED,
        lambda pool: {"relation": EXACTLY, "count": pool.number(2, 5)}, claims="length paragraphs",
        excludes="bullets numbered sections title postscript",
    ),
    kind(
        "paragraph_start", _paragraph_starts, {"count": int, "paragraph": int, "text": str}, _draw_paragraph_start,
        claims="length paragraphs start", excludes="bullets numbered sections postscript",
    ),
)  # fmt: skip
