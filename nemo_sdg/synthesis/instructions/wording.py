"""Case, punctuation, beginning and end of a response (IFEval's change_case, punctuation, startend, combination)."""

from __future__ import annotations

from nemo_sdg.synthesis.instructions.kind import Kind, Pool, Spec, compared, kind
from nemo_sdg.synthesis.text import folded, words

_QUOTES = {'"': '"', "“": "”", "「": "」", "『": "』"}
_CLOSING = "\"'”’」』*_ \n\t"


def _capitals(response: str, spec: Spec) -> bool:
    """Words of two letters at least that are written in capitals: `I` and `A` are none."""
    found = sum(word.isupper() and sum(c.isalpha() for c in word) > 1 for word in words(response))
    return compared(found, spec)


def _quoted(response: str, spec: Spec) -> bool:
    text = response.strip()
    return len(text) > 2 and _QUOTES.get(text[0]) == text[-1]


def _draw_choice(pool: Pool) -> dict:
    return {"texts": list(pool.lists["options"])}


def _draw_repeat(pool: Pool) -> dict | None:
    return {"text": pool.prompt} if 0 < len(pool.prompt) <= 400 else None


def _draw_capitals(pool: Pool) -> dict:
    return {"relation": pool.relation(), "count": pool.number(2, 8)}


KINDS: tuple[Kind, ...] = (
    kind("upper", lambda r, spec: r.isupper(), {}, lambda pool: {}, claims="case", cased=True),
    kind(
        "lower", lambda r, spec: r.islower(), {}, lambda pool: {}, claims="case", cased=True,
        excludes="sections postscript",
    ),
    kind(
        "capital_words", _capitals, {"relation": str, "count": int}, _draw_capitals, claims="case", cased=True,
        # What these ask for may be in capitals itself.
        excludes="include keyword_frequency sections postscript paragraph_start start_with end_with",
    ),
    kind("no_comma", lambda r, spec: not set(r) & set(",、，،"), {}, lambda pool: {}),
    kind(
        "start_with", lambda r, spec: folded(r).startswith(folded(spec["text"])), {"text": str},
        lambda pool: {"text": pool.chance.choice(pool.lists["starts"])}, claims="start",
    ),
    kind(
        "end_with", lambda r, spec: folded(r.strip(_CLOSING)).endswith(folded(spec["text"].strip(_CLOSING))),
        {"text": str},
        lambda pool: {"text": pool.chance.choice(pool.lists["ends"])}, claims="end",
    ),
    kind("quotation", _quoted, {}, lambda pool: {}, claims="start end", excludes="bullets numbered"),
    kind(
        "choice", lambda r, spec: any(folded(t) in folded(r) for t in spec["texts"]), {"texts": list}, _draw_choice,
        only="",
    ),
    kind(
        "repeat_prompt", lambda r, spec: folded(r).startswith(folded(spec["text"])), {"text": str}, _draw_repeat,
        only="include end_with",
    ),
)  # fmt: skip
