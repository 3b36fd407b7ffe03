"""Every setting of a run, and another value for each."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from nemo_sdg.config import RunConfig, flatten

_OTHERS = {
    "models.dtype": "fp64",
    "models.spec": "local",
    "models.placement": "together",
    "generate.backend": "endpoint",
    "score.backend": "hf",
    "judge.backend": "endpoint",
    "preference.judge": "llm",
    "preference.start_from": "latest",
    "preference.objective": "dpo",
    "sft.start_from": "latest",
    "reward.start_from": "base",
    "reward.objective": "bradley_terry",
    "reward.outputs": dict(helpfulness=4, correctness=5, coherence=6, complexity=7, verbosity=3),
    "reward.compare": "coherence",
    "evaluate.gate_policy": "exact_match",
    "evaluate.gate_reward": "rewardbench",
    "run.stop_after": "3h50m",
}
"""Settings of which only certain texts are allowed."""


def leaves(kind: Any = RunConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, declared type) of each field, as the dataclasses have them."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        declared = hints[field.name]
        if dataclasses.is_dataclass(declared):
            yield from leaves(declared, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", declared


def changed(config: RunConfig, key: str) -> RunConfig:
    """A copy with one field changed to another value of its type."""
    new = copy.deepcopy(config)
    *groups, name = key.split(".")
    holder: Any = new
    for group in groups:
        holder = getattr(holder, group)
    declared = dict(leaves())[key]
    setattr(holder, name, _another(key, getattr(holder, name), declared))
    assert flatten(new) != flatten(config), key
    return new


def _another(key: str, value: Any, declared: Any) -> Any:
    if key in _OTHERS:
        return _OTHERS[key]
    origin = getattr(declared, "__origin__", None)
    if origin is dict:
        return {**value, "coherence": 0.25}
    if origin is list:
        return [*value, "STOP"]
    kinds = get_args(declared) or (declared,)
    if bool in kinds:
        return not value
    if int in kinds:
        return (value or 0) + 64
    if float in kinds:
        return 0.125 if value is None else value / 4 + 0.1
    assert str in kinds, f"there is no other value for {key} of {declared}"
    return f"{value or ''}other"
