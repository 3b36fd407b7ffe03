"""The line of a row in a sealed part, of which little is read or changed, without reading the row.

What `to_row` gives begins with the ids and ends with what was decided last: a Scored with its scores, a Decision with
kept, reason and scalar. A text cannot look like either, for the quotes in it are escaped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from nemo_sdg.store.files import dump

_TEXT = rb'"(?:[^"\\]|\\.)*"'
_PROMPT_ID = re.compile(rb'\{"id":' + _TEXT + rb',"prompt_id":(' + _TEXT + rb")")
_SCORES, _LAST = b',"scores":{', re.compile(rb"[^{}]*\}\}\n")


def prompt_id(line: bytes) -> str:
    """Of a Response, or of what became of it."""
    return json.loads(_PROMPT_ID.match(line)[1])


def decided(
    line: bytes, columns: Mapping[str, Any], *, kept: bool, reason: str | None, scalar: float
) -> bytes | None:
    """The line of a Decision, from that of its Scored; None where scores do not stand last in it, because a column of the
    user's was called so.

    Args:
        columns: that the row did not have and that pass through from now on.
    """
    scores = line.rfind(_SCORES)
    if not _LAST.fullmatch(line, scores + len(_SCORES)):
        return None
    passing = b"," + dump(columns)[1:-2] if columns else b""
    decision = {"kept": kept, "reason": reason, "scalar": scalar if math.isfinite(scalar) else None}
    return line[:scores] + passing + line[scores:-2] + b"," + dump(decision)[1:]
