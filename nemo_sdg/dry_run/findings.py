"""What does not fit together, each once: the ranks that it is true of are listed with it."""

from __future__ import annotations

from collections import defaultdict

_MOST_RANKS = 8


class Findings:
    def __init__(self) -> None:
        self._ranks: dict[str, list[int]] = defaultdict(list)

    def add(self, finding: str, rank: int | None = None) -> None:
        ranks = self._ranks[finding]
        if rank is not None and rank not in ranks:
            ranks.append(rank)

    @property
    def all(self) -> list[str]:
        """One sentence for each finding, in the order in which they were made."""
        return [f"{finding}{_of(ranks)}" for finding, ranks in self._ranks.items()]


def _of(ranks: list[int]) -> str:
    if not ranks:
        return ""
    more = f" and {len(ranks) - _MOST_RANKS} more" if len(ranks) > _MOST_RANKS else ""
    listed = ", ".join(map(str, ranks[:_MOST_RANKS]))
    return f" (rank{'s' if len(ranks) > 1 else ''} {listed}{more})"
