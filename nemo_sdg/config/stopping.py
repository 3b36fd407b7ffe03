"""When a run ends by itself before it is finished."""

from __future__ import annotations

import re

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_TIME = re.compile("".join(rf"(?:([0-9]+){unit})?" for unit in _UNITS))
STOPPING = {"run.stop_after": ("a time such as 90s, 20m, 3h50m or 1d2h", lambda text: seconds(text) > 0)}
"""What the setting may be."""


def seconds(text: str) -> int:
    """A time such as 3h50m in seconds; 0 for what is none."""
    found = _TIME.fullmatch(text)
    parts = found.groups() if found else ()
    return sum(int(count) * size for count, size in zip(parts, _UNITS.values()) if count)
