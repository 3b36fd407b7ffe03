"""How sure a share is."""

from __future__ import annotations

import math

_Z = 1.959963984540054
"""The 97.5th percentile of the normal distribution: intervals hold 95 %."""


def wilson(right: float, n: int) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval of Wilson (1927) for a share of `right` in `n`; (None, None) where n is 0.

    Unlike the share plus and minus its standard error it is never empty, also where all are right, and never leaves 0 to 1.

    Args:
        right: may hold halves, of ties that count half; the interval is then wider than it need be, for a tie varies less
            than a win and a loss.
    """
    if n == 0:
        return None, None
    share, z2 = right / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
