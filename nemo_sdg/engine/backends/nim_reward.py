"""NVIDIA NIM's reward convention: chat completions whose log-probabilities are scores.

The messages end with an assistant turn. `choices[0].logprobs.content` has an entry per attribute; its `token` is
the attribute's name and its `logprob` the score. `message` may be a list there, and is not read.
Source: https://docs.nvidia.com/nim/large-language-models/1.11.0/reward-model.html, and the answers in
NVIDIA/NeMo-Curator: tutorials/nemotron_340B_synthetic_datagen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nemo_sdg.config import ATTRIBUTES
from nemo_sdg.engine.backends.shape import take
from nemo_sdg.errors import RowError

_EXPECTED = "one finite number for each of " + ", ".join(ATTRIBUTES)


def read_scores(answer: Any, own: Sequence[str] = ()) -> dict[str, float]:
    """The five attributes by name, as the server gave them, whatever the order of the entries; then the user's own.

    Raises:
        RowError: an attribute is missing, is neither one of the five nor the user's own, stands twice or is not finite.
    """
    entries = take(answer, "choices", 0, "logprobs", "content", kind=list)
    scores: dict[str, float] = {}
    names = []
    for index in range(len(entries)):
        path = ("choices", 0, "logprobs", "content", index)
        name, value = take(answer, *path, "token", kind=str), take(answer, *path, "logprob", kind=float)
        if name in scores:
            raise RowError("the server scored an attribute twice", found=name[:40], expected=_EXPECTED)
        if not math.isfinite(value):
            raise RowError("the scores are not finite", found=f"{name[:40]} = {value}", expected=_EXPECTED)
        scores[name] = value
        names.append(name[:40])
    for name in ATTRIBUTES:
        if name not in scores:
            found = ", ".join(names)[:200] or "no entries"
            raise RowError(f"the server's answer has no score for {name}", found=found, expected=_EXPECTED)
    extra = [name for name in names if name not in (*ATTRIBUTES, *own)]
    if extra:
        raise RowError("the server scored an unknown attribute", found=", ".join(extra)[:200], expected=_EXPECTED)
    return {name: scores[name] for name in (*ATTRIBUTES, *own) if name in scores}
