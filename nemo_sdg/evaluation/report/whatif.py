"""The rows of each round as numbers that a page carries, so that it can select again without anything beside it.

Numbers are little-endian arrays in base64. Scores are float64: what a row says in decimals is a float64 to selection,
and a limit must fall on the same side of it here and there.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from nemo_sdg.config import ATTRIBUTES, RunConfig, Select
from nemo_sdg.evaluation.report.rows import Rows, shown
from nemo_sdg.records import Scored

OFFERED = ("minimum", "maximum", "weights", "minimum_scalar", "per_prompt")
"""Settings of `select` that the page changes."""
FOLLOWED = ("unique", "percentile", "length_free", "target")
"""Settings that it decides by as they are. All others it takes as they were decided."""
TEXT_BYTES = 600_000
"""Of texts of rows that a page carries at most, over all rounds."""
_TEXTS = 4_000
"""Rows whose texts are looked at for that, per round."""
_PROMPT, _RESPONSE = 140, 220
"""Characters of a text."""


def settings(config: RunConfig) -> dict[str, Any]:
    """What the page needs of a run's settings."""
    select = config.select
    named = {name: getattr(select, name) for name in (*OFFERED, *FOLLOWED)}
    return {**named, "labels": list(dict.fromkeys((*ATTRIBUTES, *config.reward.outputs))), "taken": taken(select),
            "revises": config.revise.passes > 0}  # fmt: skip


def taken(select: Select) -> list[str]:
    """The settings in use that the page cannot decide by."""
    plain = Select()
    names = ("near_duplicates", "decontaminate", "balance", "pii")
    return [f"select.{name}" for name in names if getattr(select, name) != getattr(plain, name)]


def of_round(rows: Rows, select: Select, *, versions: bool, text_bytes: int) -> dict[str, Any]:
    """One round: columns of the rows that have an id here, in their order.

    Args:
        versions: whether some rows are versions of one answer.
        text_bytes: of texts at most.
    """
    here = np.array(sorted(rows.ids), np.int64)

    def column(values: Any, kind: type = np.int64) -> np.ndarray:
        return np.array(values, kind)[here]

    names, samples = column(rows.names), column(rows.samples)
    ties = np.empty(len(here), np.int32)
    ties[np.lexsort((names, samples))] = np.arange(len(here))
    prompts, characters = column(rows.prompts), column(rows.characters)
    texts = np.stack([prompts, column(rows.texts)], axis=1)
    told: dict[str, Any] = {
        "round": rows.round,
        "of": len(rows),
        "ids": [rows.ids[row] for row in here.tolist()],
        "scores": {name: packed(column(values, np.float64), "<f8") for name, values in rows.scores.items()},
        "flags": packed(column(rows.flags), "u1"),
        "characters": packed(np.minimum(characters, 2**31 - 1), "<i4"),
        "prompt": packed(_numbered(prompts), "<i4"),
        "text": packed(_numbered(texts), "<i4"),
        "same": packed(_numbered(texts[:, 1]), "<i4"),
        "tie": packed(ties, "<i4"),
    }
    if versions:
        told["root"] = packed(_numbered(column(rows.roots)), "<i4")
    # What is decided beside others is known of all waves together alone, so then the page takes all of them, as the run.
    if select.target is not None and select.near_duplicates is None and not select.balance:
        told["wave"] = packed(column(rows.waves), "<i4")
    if select.length_free:
        told["log"] = packed(np.log(np.maximum(characters, 1).astype(np.float64)), "<f8")
    topic = rows.topic()
    if topic is not None:
        what, known, numbers = topic
        told["topic"] = {"what": what, "names": known, "of": packed(numbers[here], "<i4")}
    told["pairs"] = _pairs(rows, here)
    told["texts"] = _texts(rows, here, select, text_bytes)
    return told


def packed(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode()


def _numbered(values: np.ndarray) -> np.ndarray:
    """Equal rows have equal numbers, from 0."""
    return np.unique(values, axis=0, return_inverse=True)[1].reshape(-1)


def _pairs(rows: Rows, here: np.ndarray) -> dict[str, Any]:
    """Which pairs of words stand in the rows whose pairs are known: the numbers of all of them one after the other, and
    where each row's end. Rows stand in the order of their hashes, so that the first so many are a sample."""
    some = [(place, rows.grams[row]) for place, row in enumerate(here.tolist()) if row in rows.grams]
    some.sort(key=lambda one: rows.names[here[one[0]]])
    grams = np.concatenate([np.empty(0, np.uint64), *(pairs for _, pairs in some)])
    return {
        "rows": packed(np.array([place for place, _ in some]), "<i4"),
        "ends": packed(np.cumsum([len(pairs) for _, pairs in some]), "<i4"),
        "pairs": packed(_numbered(grams) if len(grams) else grams, "<i4"),
    }


def _texts(rows: Rows, here: np.ndarray, select: Select, most: int) -> dict[int, tuple[str, str]]:
    """(end of the prompt, beginning of the response) of those rows that are nearest to a limit, while there is room:
    a small change moves these."""
    order = np.argsort(_slack(rows, here, select), kind="stable")[:_TEXTS]
    found = shown(rows, here[order].tolist())
    texts, left = {}, most
    for place in order.tolist():
        row = found.get(int(here[place]))
        if row is None:
            continue
        said = shortened(row)
        left -= sum(len(text.encode("utf-8", "replace")) for text in said)
        if left < 0:
            break
        texts[place] = said
    return texts


def shortened(row: Scored) -> tuple[str, str]:
    question = row.messages[-1]["content"]
    question = question if len(question) <= _PROMPT else "… " + question[-_PROMPT:]
    answer = row.response if len(row.response) <= _RESPONSE else row.response[:_RESPONSE] + " …"
    return question, answer


def _slack(rows: Rows, here: np.ndarray, select: Select) -> np.ndarray:
    """How near each row is to the limit that it meets or misses most narrowly; without limits, to the median scalar."""
    limits = [*select.minimum.items(), *select.maximum.items()]
    distances = [np.abs(np.array(rows.scores[name])[here] - limit) for name, limit in limits if name in rows.scores]
    scalars = np.array(rows.scalars)[here]
    if select.minimum_scalar is not None:
        distances.append(np.abs(scalars - select.minimum_scalar))
    if not distances:
        finite = scalars[np.isfinite(scalars)]
        distances.append(np.abs(scalars - (np.median(finite) if len(finite) else 0.0)))
    return np.nan_to_num(np.min(distances, axis=0), nan=np.inf)


def of_run(all_rows: Sequence[Rows], config: RunConfig) -> dict[str, Any] | None:
    """What the page carries: the settings and the rounds that selection has decided on; None where there are none."""
    decided = [rows for rows in all_rows if rows.decided]
    if not decided:
        return None
    versions, room = config.revise.passes > 0, TEXT_BYTES // len(decided)
    rounds = [of_round(rows, config.select, versions=versions, text_bytes=room) for rows in decided]
    return {"settings": settings(config), "rounds": rounds}
