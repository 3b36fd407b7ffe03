"""Who answers prompts and who scores responses: the small interface that all backends share. No torch here.

A recipe swaps them by one setting (`generate.backend`, `score.backend`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from nemo_sdg.engine.requests import Sampling
from nemo_sdg.errors import RowError
from nemo_sdg.records import Prompt, Response, Scored


@dataclass(frozen=True)
class Refusal:
    """A row that was set aside, and why."""

    id: str
    """`<prompt id>#<sample>`."""
    error: RowError


class Generator(Protocol):
    """Answers prompts. What it yields carries no provenance of its own; the caller adds it."""

    identity: dict[str, str]
    """What the rows depend on, for the fingerprint and the provenance: {"policy": digest}, or a server's model."""

    def generate(
        self, prompts: Iterable[Prompt], sampling: Sampling, samples: int, first: int = 0
    ) -> Iterator[Response | Refusal]:
        """`samples` rows per prompt, numbered from `first` on, each exactly once, as they finish: in any order."""

    def close(self) -> None:
        """Give back what it holds: memory, connections."""


class Scorer(Protocol):
    """Gives responses their attributes."""

    identity: dict[str, str]

    def score(self, responses: Iterable[Response]) -> Iterator[Scored | Refusal]:
        """One row per response, as they finish: in any order."""

    def close(self) -> None: ...
