"""Best, median and worst rows side by side, and what revision changed in those that it helped most."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import numpy as np

from nemo_sdg.config import MISSING
from nemo_sdg.evaluation.report import html
from nemo_sdg.evaluation.report.rows import Rows, shown
from nemo_sdg.records import Decision, Scored

SHOWN = 3
"""Rows of each kind."""
_CHARACTERS = 1200
"""Of a text; a longer one is cut in the middle."""
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


def ranked(rows: Rows) -> dict[str, list[int]]:
    """Numbers of rows by kind: those of the highest scalar, about the median, of the lowest. No text comes twice, of
    equals the one with the smaller hash is taken."""
    scalars, names = np.array(rows.scalars), np.array(rows.names)
    finite = np.flatnonzero(np.isfinite(scalars))
    best_first = finite[np.lexsort((names[finite], -scalars[finite]))]
    middle = len(best_first) // 2
    from_the_middle = sorted(range(len(best_first)), key=lambda place: abs(place - middle))
    taken: set[tuple[int, int]] = set()

    def some(order: Iterable[int]) -> list[int]:
        found: list[int] = []
        for row in order:
            text = rows.prompts[row], rows.texts[row]
            if text not in taken and len(found) < SHOWN:
                taken.add(text)
                found.append(int(row))
        return found

    return {"best": some(best_first), "median": some(best_first[from_the_middle]), "worst": some(best_first[::-1])}


def revised(rows: Rows) -> list[tuple[int, int]]:
    """(a version that is kept, the answer that it goes back to), those that have gained most first."""
    first = {root: row for row, (root, pass_) in enumerate(zip(rows.roots, rows.revisions)) if not pass_}
    kept = np.flatnonzero(rows.kept & (np.array(rows.revisions) > 0)).tolist()
    both = [(row, first[rows.roots[row]]) for row in kept if rows.roots[row] in first]
    gains = {row: rows.scalars[row] - rows.scalars[origin] for row, origin in both}
    return sorted(both, key=lambda pair: (-gains[pair[0]], rows.names[pair[0]]))[:SHOWN]


def examples(rows: Rows) -> str:
    """The three columns, and below them the revisions."""
    groups, pairs = ranked(rows), revised(rows) if rows.decided else []
    wanted = {row for some in groups.values() for row in some} | {row for pair in pairs for row in pair}
    found = shown(rows, sorted(wanted))
    columns = []
    for kind, some in groups.items():
        cards = "".join(_card(found[row]) for row in some if row in found)
        columns.append(f"<div><h4>{kind}</h4>{cards}</div>")
    changed = [_change(found[new], found[old]) for new, old in pairs if new in found and old in found]
    below = f"<h4>what revision changed</h4>{''.join(changed)}" if changed else ""
    return f'<div class="three">{"".join(columns)}</div>{below}'


def _card(row: Scored) -> str:
    return (
        f'<article class="row">{_asked(row)}{html.said(cut(row.response), "text answer")}'
        f"{scores(row)}{_fate(row)}</article>"
    )


def _asked(row: Scored) -> str:
    return html.said(cut(row.messages[-1]["content"]), "text asked")


def _fate(row: Scored) -> str:
    why = ""
    if isinstance(row, Decision):
        why = '<span class="up">kept</span>' if row.kept else f'<span class="down">{html.text(row.reason)}</span>'
    return f'<p class="under"><code>{html.text(row.id)}</code> {why}</p>'


def scores(row: Scored, before: Scored | None = None) -> str:
    """The scores as a line of small tables; what they were before, too."""
    cells = []
    for name, score in row.scores.items():
        was = None if before is None else before.scores.get(name)
        then = "" if was is None else f"{_score(was)} → "
        cells.append(f"<span>{html.text(name)} <b>{then}{_score(score)}</b></span>")
    return f'<p class="scores">{" ".join(cells)}</p>'


def _score(score: float) -> str:
    return "–" if score == MISSING or not np.isfinite(score) else f"{score:.2f}"


def _change(new: Scored, old: Scored) -> str:
    changed = word_diff(cut(old.response), cut(new.response))
    return (
        f'<article class="row">{_asked(new)}<div class="text answer" dir="auto">{changed}</div>'
        f"{scores(new, old)}{_fate(new)}</article>"
    )


def word_diff(old: str, new: str) -> str:
    """The new text as HTML, with what went in <del> and what came in <ins>, word by word."""
    a, b = _WORDS.findall(old), _WORDS.findall(new)
    parts = []
    for kind, a_from, a_to, b_from, b_to in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        gone, come = html.text("".join(a[a_from:a_to])), html.text("".join(b[b_from:b_to]))
        if kind == "equal":
            parts.append(come)
        else:
            parts.append((f"<del>{gone}</del>" if gone else "") + (f"<ins>{come}</ins>" if come else ""))
    return "".join(parts)


def cut(text: str) -> str:
    if len(text) <= _CHARACTERS:
        return text
    half = _CHARACTERS // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters …]\n{text[-half:]}"
