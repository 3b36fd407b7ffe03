"""Pieces of a page. What comes from a run goes through `text`: it stays what somebody wrote and never becomes markup."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
"""Control characters, and halves of pairs that no encoding has."""
_IN_SCRIPT = re.compile("[<>&\u2028\u2029]")
"""What could end a script element, or a line of one, before its end."""


def text(value: object) -> str:
    return escape(_UNSEEN.sub("\ufffd", str(value)), quote=True)


def said(value: object, kind: str = "text") -> str:
    """A text of a row, in its own direction and with its line breaks."""
    return f'<div class="{kind}" dir="auto">{text(value)}</div>'


def data(value: Any) -> str:
    """JSON that may stand inside a script element."""
    plain = _UNSEEN.sub("\ufffd", json.dumps(value, ensure_ascii=False, allow_nan=False))
    return _IN_SCRIPT.sub(lambda found: f"\\u{ord(found[0]):04x}", plain)


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] | range = (), kind: str = ""
) -> str:
    """Heads and cells are HTML already; columns in `numbers` stand to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        marked = (f"<{tag}{' class=n' if i in numbers else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide {kind}"><table><thead>{line(heads, "th")}</thead><tbody>{body}</tbody></table></div>'


def pairs(told: Mapping[str, str]) -> str:
    """Names and what is said of them, which is HTML already."""
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{value}</dd>" for name, value in told.items()) + "</dl>"


def details(summary: str, content: str) -> str:
    """Something that is folded away; on paper it is not."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def bar(share: float) -> str:
    width = 100 * min(max(share, 0.0), 1.0)
    head = '<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
    return f'{head}<rect width="{width:.1f}" height="6"></rect></svg>'
