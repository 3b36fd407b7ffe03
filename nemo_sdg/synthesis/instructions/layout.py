"""How a response is laid out: lists, JSON, sections, marks (IFEval's detectable_format and detectable_content)."""

from __future__ import annotations

import json
import re

from nemo_sdg.synthesis.instructions.kind import Kind, Pool, Spec, kind
from nemo_sdg.synthesis.text import folded

# A star that opens *an emphasis* at the beginning of a line marks no bullet, unlike IFEval's.
_BULLET = re.compile(r"^[ \t　]*(?:\*(?!\*)(?![^\n*\s][^\n*]*\*)|-(?!--)|[・•●])[^\n]*\S[^\n]*$", re.MULTILINE)
_NUMBER = re.compile(r"^[ \t　]*(?:\*\*)?[(（]?[0-9０-９]{1,3}(?:[.．](?![0-9０-９])|[)）、])[^\n]*\S[^\n]*$", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*\*[^\n*]*[^\s*][^\n*]*\*\*|\*[^\n*\s][^\n*]*\*")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]|［[^［］\n]+］")
_TITLE = re.compile(r"<<[^\n]*?[^\s<>][^\n]*?>>|《《[^\n]*?\S[^\n]*?》》")
_STARS = re.compile(r"\s*\*{6}\s*")


def _json(response: str, spec: Spec) -> bool:
    """An object or a list, with a Markdown fence around it or not."""
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", response.strip(), flags=re.IGNORECASE)
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


def _sections(response: str, spec: Spec) -> bool:
    marks = re.findall(rf"^[ \t*#]*{re.escape(spec['text'])}[ \t]*[0-9０-９]+", response, re.MULTILINE | re.IGNORECASE)
    return len(marks) >= spec["count"]


def _postscript(response: str, spec: Spec) -> bool:
    """The mark begins a line, and something follows it."""
    mark = r"\s*".join(re.escape(c) for c in spec["text"] if not c.isspace())
    return bool(re.search(rf"^[ \t*]*{mark}[ \t:：*]*\S", response, re.MULTILINE | re.IGNORECASE))


def _two(response: str, spec: Spec) -> bool:
    """Two different texts, parted by six asterisks, which may stand at the ends too."""
    answers = _STARS.split(response.strip())
    answers = answers[1:] if answers[0] == "" else answers
    answers = answers[:-1] if answers and answers[-1] == "" else answers
    return len(answers) == 2 and all(map(str.strip, answers)) and folded(answers[0]) != folded(answers[1])


def _exactly(low: int, high: int):
    return lambda pool: {"count": pool.number(low, high)}


def _draw_sections(pool: Pool) -> dict:
    return {"text": pool.chance.choice(pool.lists["sections"]), "count": pool.number(2, 4)}


_COUNT = {"count": int}
KINDS: tuple[Kind, ...] = (
    kind(
        "bullets", lambda r, spec: len(_BULLET.findall(r)) == spec["count"], _COUNT, _exactly(2, 7), claims="list",
    ),
    kind(
        "numbered", lambda r, spec: len(_NUMBER.findall(r)) == spec["count"], _COUNT, _exactly(2, 7), claims="list",
        excludes="sections",
    ),
    kind("json", _json, {}, lambda pool: {}, only="include exclude"),
    kind("highlights", lambda r, spec: len(_HIGHLIGHT.findall(r)) >= spec["count"], _COUNT, _exactly(1, 4)),
    kind("sections", _sections, {"text": str, "count": int}, _draw_sections, claims="sections"),
    kind("placeholders", lambda r, spec: len(_PLACEHOLDER.findall(r)) >= spec["count"], _COUNT, _exactly(1, 4)),
    kind("title", lambda r, spec: bool(_TITLE.search(r)), {}, lambda pool: {}, claims="start"),
    kind(
        "postscript", _postscript, {"text": str},
        lambda pool: {"text": pool.chance.choice(pool.lists["postscripts"])}, claims="end",
    ),
    kind("two_answers", _two, {}, lambda pool: {}, only="include exclude no_comma language"),
)  # fmt: skip
