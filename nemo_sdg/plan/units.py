"""Sizes for people."""

from __future__ import annotations


def bytes_text(count: float) -> str:
    """A size for people: 1024 bytes are a KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
