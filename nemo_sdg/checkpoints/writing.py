"""What the writers of all formats have in common: a checkpoint is made of units, each written in one go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Unit:
    """A part of a checkpoint: one file, or a few. Units know nothing of each other and may run side by side."""

    files: tuple[str, ...]
    """Names below the folder, with `/`; the first one names the unit."""
    num_bytes: int
    """Bytes that it writes, headers apart: for the progress and the free space."""
    write: Callable[[Path], None]
    """Writes the files below the folder that it is given, with a few hundred MB of memory at most."""
