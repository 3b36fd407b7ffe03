"""From what a policy says and a reward model scores to the figures of evaluation.json. Nothing here asks a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_sdg.config import MISSING, RunConfig
from nemo_sdg.evaluation import rewardbench
from nemo_sdg.evaluation.agreement import agreement
from nemo_sdg.evaluation.exact_match import exact_match
from nemo_sdg.evaluation.files import HeldOut
from nemo_sdg.evaluation.held_out import Scores
from nemo_sdg.evaluation.instructions import following
from nemo_sdg.evaluation.win_rate import Said
from nemo_sdg.quality.rules import scalarise
from nemo_sdg.records import Prompt, hash_of
from nemo_sdg.records.fields import Message

Conversations = list[tuple[tuple[Message, ...], str]]


def of_policy(rows: HeldOut, said: Mapping[str, str]) -> dict[str, Any]:
    """{"policy": ..., "instructions": ...}, those whose files are set; see `exact_match` and `instructions`.

    A prompt that got no answer is not right, and follows nothing; leaving it out would reward a model for failing.

    Args:
        said: responses by the name of the conversation, as `held_out.answers` gives them.
    """
    found: dict[str, Any] = {"policy": None}
    if rows.exact_match:
        pairs = [(_answer(said, row) or "", row.extra["answer"]) for row in rows.exact_match]
        found["policy"] = {**exact_match(pairs), "faulty": rows.faulty["exact_match"]}
    if rows.instructions:
        told = following((checks, _answer(said, row) or "") for row, checks in rows.instructions)
        found["instructions"] = {**told, "faulty": rows.faulty["instructions"]}
    return found


def labelled(rows: HeldOut) -> Conversations:
    """What a reward model scores to be held against people."""
    return [(row.messages, row.response) for row in rows.helpsteer2]


def compared(rows: HeldOut) -> Conversations:
    """What it scores for RewardBench: of each row the chosen response, then the rejected one."""
    return [(row.messages, text) for row in rows.rewardbench for text in (row.chosen, row.rejected)]


def of_reward(rows: HeldOut, config: RunConfig, judged: Sequence[Scores], pairs: Sequence[Scores]) -> dict[str, Any]:
    """{"reward": ..., "reward_faulty": rows without a label or a score, "rewardbench": ...}, those whose files are set; see
    `agreement` and `rewardbench`.

    Args:
        judged, pairs: the scores of `labelled` and of `compared`, in their order.
    """
    found: dict[str, Any] = {"reward": None}
    if rows.helpsteer2:
        known = [(scores, row) for scores, row in zip(judged, rows.helpsteer2, strict=True) if scores is not None]
        names = [hash_of(row.messages) for _, row in known]
        found["reward"] = agreement([scores for scores, _ in known], [row.labels for _, row in known], names)
        found["reward_faulty"] = rows.faulty["helpsteer2"] + len(judged) - len(known)
    if rows.rewardbench:
        scalars = [_scalar(scores, config) for scores in pairs]
        table = rewardbench.result(rows.rewardbench, list(zip(scalars[::2], scalars[1::2])))
        found["rewardbench"] = {**table, "faulty": table["faulty"] + rows.faulty["rewardbench"]}
    return found


def replies(rows: HeldOut, said: Mapping[str, str]) -> Conversations:
    """The answers that win rate compares, of the prompts that have one, in their order."""
    return [(row.messages, answer) for row in rows.win_rate if (answer := _answer(said, row)) is not None]


def compared_as(rows: HeldOut, config: RunConfig, said: Mapping[str, str], judged: Sequence[Scores]) -> list[Said | None]:
    """What win rate compares, by prompt; None where there is no answer, or no score of it.

    Args:
        judged: the scores of `replies`, in their order.
    """
    scored, found = iter(judged), []
    for row in rows.win_rate:
        answer = _answer(said, row)
        scalar = None if answer is None else _scalar(next(scored), config)
        found.append(None if scalar is None else Said(scalar, len(answer), hash_of(answer)))
    return found


def _answer(said: Mapping[str, str], row: Prompt) -> str | None:
    return said.get(hash_of(row.messages))


def _scalar(scores: Scores, config: RunConfig) -> float | None:
    """The weighted sum by evaluate.weights; None where nothing that has a weight was scored."""
    if scores is None:
        return None
    known = {name: value for name, value in scores.items() if value != MISSING}
    scalar = scalarise(known, config.evaluate.weights)
    return scalar if math.isfinite(scalar) else None
