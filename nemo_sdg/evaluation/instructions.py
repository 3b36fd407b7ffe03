"""Verifiable instruction following, counted as IFEval counts it.

Zhou et al. 2023, arXiv 2311.07911; google-research, instruction_following_eval/evaluation_lib.py: an instruction is
followed *strictly* when the response as it stands follows it, and *loosely* when the response does, or what is left of it
without its first line, its last line or both, each also without asterisks. A prompt counts when all of its instructions
are followed. An empty response follows none. The instructions are those of `synthesis.instructions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nemo_sdg.errors import RowError
from nemo_sdg.evaluation.intervals import wilson
from nemo_sdg.records import Prompt
from nemo_sdg.synthesis.instructions import relaxed
from nemo_sdg.synthesis.requirements import Requirement, checks_of


def verifiable(row: Prompt, where: str) -> list[Requirement]:
    """The checks of a row that a program can decide; those that ask a judge are left out.

    Raises:
        RowError: the row has none, or its column `checks` cannot be read.
    """
    checks = [check for check in checks_of(row.extra, where) if check.spec is not None]
    if not checks:
        expected = '"checks" with a "spec" in one of them'
        raise RowError("the row has no instruction that a program can check", where=where, expected=expected)
    return checks


def follows(check: Requirement, response: str, *, strict: bool) -> bool:
    """Whether a response follows one instruction, for what is forbidden too."""
    texts = [response] if strict else relaxed(response)
    return any(text.strip() and check.holds(text) for text in texts)


def following(answered: Iterable[tuple[Sequence[Requirement], str]]) -> dict[str, Any]:
    """Shares of prompts and of instructions that were followed, from (instructions, response) of each prompt.

    Returns:
        {"prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose": 0 to 1 or None over no prompts, "low",
        "high": the Wilson interval of 95 % of prompt_strict, "prompts", "instructions"}.
    """
    outcomes: dict[str, list[list[bool]]] = {"strict": [], "loose": []}
    for checks, response in answered:
        for name, rows in outcomes.items():
            rows.append([follows(check, response, strict=name == "strict") for check in checks])
    prompts = len(outcomes["strict"])
    instructions = sum(map(len, outcomes["strict"]))
    found: dict[str, Any] = {}
    for name, rows in outcomes.items():
        found[f"prompt_{name}"] = sum(map(all, rows)) / prompts if prompts else None
        found[f"instruction_{name}"] = sum(map(sum, rows)) / instructions if prompts else None
    low, high = wilson(sum(map(all, outcomes["strict"])), prompts)
    return {**found, "low": low, "high": high, "prompts": prompts, "instructions": instructions}
