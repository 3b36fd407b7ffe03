"""May a new model go on? A measure on held-out rows, of the new one and of the one that it would follow.

The rule is stated, and told with its figures: a new model goes on when its measure is higher by more than
`evaluate.gate_margin`. A model whose measure nobody could take does not go on. Who asks
later is answered by `store.fits.goes_on`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nemo_sdg.config import Evaluate
from nemo_sdg.store.fits import POLICY, REWARD

KINDS = (POLICY, REWARD)


def deciding(settings: Evaluate, kind: str) -> str | None:
    """The measure in which a new model of this kind must be better; None where none is asked for."""
    return {"policy": settings.gate_policy, "reward": settings.gate_reward}[kind]


def measured(settings: Evaluate, kind: str, state: Mapping[str, Any], beside: Mapping[str, Any]) -> float | None:
    """The measure that decides on a kind, 0 to 1, of a state as evaluation.json has it; None where it has none.

    Nobody has won anything before the run: its policy against itself is 0.5.

    Args:
        beside: the state of the old model. An attribute in which that has no correlation, as where all held-out labels are the
            same, does not count.
    """
    name = deciding(settings, kind)
    if name == "exact_match":
        return (state.get("policy") or {}).get("exact_match")
    if name == "instructions":
        return (state.get("instructions") or {}).get("prompt_strict")
    if name == "win_rate":
        return state["win_rate"]["win_rate"] if "win_rate" in state else 0.5
    if name == "agreement":
        counted = [key for key, one in (beside.get("reward") or {}).items() if one["spearman"] is not None]
        found = [(state.get("reward") or {}).get(key, {}).get("spearman") for key in counted]
        return None if not found or None in found else float(np.mean(found))
    sections = {key: value for key, value in (state.get("rewardbench") or {}).items() if isinstance(value, float)}
    return sections.get("Overall", float(np.mean(list(sections.values()))) if sections else None)


def verdict(settings: Evaluate, kind: str, new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """{"accepted", "measure", "new", "old", "margin", "why"} of a new model against the one that it would follow."""
    name, values = deciding(settings, kind), [measured(settings, kind, state, old) for state in (new, old)]
    known = None not in values
    accepted = known and values[0] > values[1] + settings.gate_margin
    said = f"{name} {_three(values[0])} after {_three(values[1])}"
    asked = f", more than {settings.gate_margin:g} better was asked for" if settings.gate_margin else ""
    why = f"{said}{asked}: {'it goes on' if accepted else 'the one before stays'}"
    return {"accepted": accepted, "measure": name, "new": values[0], "old": values[1], "margin": settings.gate_margin, "why": why}


def _three(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
