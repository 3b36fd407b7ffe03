"""Training rows as samples: their tokens, and what is in the loss.

Axes: S tokens, A reward outputs. Every rank reads all rows.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nemo_sdg.config import ATTRIBUTES, OUTPUTS
from nemo_sdg.errors import RowError, UserError
from nemo_sdg.models import templates
from nemo_sdg.models.shapes import NUM_REWARD_OUTPUTS
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.records import Fault, hash_of, labelled, read_objects, row_files
from nemo_sdg.training.losses import MISSING

@dataclass(frozen=True)
class Sample:
    """One row: the tokens of its sequence, or of both sequences of a pair, and what the loss compares."""

    sequences: tuple[Tensor, ...]
    """Input tokens, int64 [S] each: one sequence, or the chosen and the rejected one."""
    labels: tuple[Tensor, ...] = ()
    """For losses on tokens, of each sequence: the next token at each position, -1 where it is not in the loss, [S]."""
    targets: Tensor | None = None
    """For losses on whole sequences: numbers to compare with, float64."""
    line: int = 0
    """Where the row stands in its file, or in its files one after the other, from 1."""
    prompt: str = ""
    """Names the conversation that a scored response answers; responses with the same one can be compared."""

    @property
    def num_tokens(self) -> int:
        """Of all its sequences."""
        return sum(len(tokens) for tokens in self.sequences)


@dataclass(frozen=True)
class Samples:
    """The usable rows of a file, and why the others are not used."""

    rows: list[Sample]
    set_aside: dict[str, int]
    """By reason, how many."""
    first: dict[str, int]
    """By reason, the line of the first one."""
    where: Path | str

    @property
    def reasons(self) -> str:
        """For example `3 x a tie (the first in line 7)`; empty where every row is used."""
        return ", ".join(f"{n} x {why} (the first in line {self.first[why]})" for why, n in self.set_aside.items())


def sft_sample(row: dict[str, Any], tokenizer: Tokenizer) -> Sample:
    """A row of NeMo's SFT chat format as tokens and labels.

    In the loss: the assistant's text with its closing newline and the `<extra_id_1>` after it (`templates.sft_text`).
    Raises:
        RowError: another mask, labelled turns, or a conversation that the template cannot express.
    """
    if row.get("mask", "User") != "User" or row.get("type") is not None:
        raise RowError("the row wants another loss mask", found=f"mask {row.get('mask')!r}, type {row.get('type')!r}",
                       expected="mask 'User', type null")  # fmt: skip
    turns = row.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("the row has no list of conversations", found=type(turns).__name__)
    messages = [{"role": "system", "content": row.get("system") or ""}]
    messages += [{"role": str(turn.get("from")).lower(), "content": turn.get("value")} for turn in turns]
    return dialogue_sample(messages, tokenizer)


def dialogue_sample(messages: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> Sample:
    """A conversation that ends with an answer, as tokens and labels.

    Raises:
        RowError: the template cannot express it, or no token of it is in the loss.
    """
    text, spans = templates.sft_text(messages)
    ids, starts = tokenizer.encode_with_offsets(text)
    trained = [any(begin <= start < end for begin, end in spans) for start in starts]
    labels = [token if in_loss else -1 for token, in_loss in zip(ids, trained)]
    if max(labels[1:], default=-1) < 0:
        raise RowError("nothing to learn")
    return Sample((torch.tensor(ids[:-1]),), labels=(torch.tensor(labels[1:]),))


def reward_sample(row: dict[str, Any], tokenizer: Tokenizer, outputs: Mapping[str, int] = OUTPUTS) -> Sample:
    """A row of the regression format (a prompt that ends in `<extra_id_2>` and nine labels, -100 where missing), or of
    HelpSteer2's, whose labels people gave: whole or not, they lie between 0 and 4.

    Args:
        outputs: the names of those that are trained; labels of others are as if they were missing.
    Raises:
        RowError: the text does not end in the read-out token, the labels are not nine finite numbers, or a person's label
            is missing or out of range.
    """
    text, label = row.get("text"), row.get("label")
    if "response" in row and text is None:
        text, label = _labelled(row, outputs)
    if not isinstance(text, str) or not text.endswith(templates.LABEL):
        raise RowError(
            "the text does not end where the reward is read", found=repr(text)[-40:], expected=templates.LABEL
        )
    if not isinstance(label, list) or len(label) != NUM_REWARD_OUTPUTS or not all(map(is_finite, label)):
        raise RowError(
            "the label is not nine numbers", found=repr(label)[:80], expected=f"{NUM_REWARD_OUTPUTS} numbers"
        )
    label = [x if slot in outputs.values() else MISSING for slot, x in enumerate(label)]
    if all(x == MISSING for x in label):
        raise RowError("the label has no score", found="no number but -100", expected="a score of one of " + ", ".join(outputs))
    tokens, targets = torch.tensor(tokenizer.encode(text)), torch.tensor(label, dtype=torch.float64)
    return Sample((tokens,), targets=targets, prompt=hash_of(text.rpartition(templates.TURN)[0]))


def is_finite(value: object) -> bool:
    """Whether a value of a row is a number that a double can hold; JSON has longer ones."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _labelled(row: dict[str, Any], outputs: Mapping[str, int]) -> tuple[str, list[float]]:
    """The regression format of a row that people labelled."""
    own = tuple(name for name in outputs if name not in ATTRIBUTES)
    read = labelled(own).from_row(row)
    text = templates.reward_prompt([*read.messages, {"role": "assistant", "content": read.response}])
    names = {slot: name for name, slot in outputs.items()}
    return text, [read.labels.get(names.get(slot), MISSING) for slot in range(NUM_REWARD_OUTPUTS)]


def _numbered(path: Path | str) -> Iterator[tuple[int, dict | Fault]]:
    files, before = row_files(path), 0
    for file in files:
        line = 0
        for line, row in read_objects(file, str(path) if len(files) == 1 else None):
            yield before + line, row
        before += line


Make = Callable[[dict[str, Any], Tokenizer], Sample]
"""Makes a sample of a row. Raises RowError for one that cannot be used."""


def read(make: Make, path: Path | str, tokenizer: Tokenizer, max_length: int) -> Samples:
    """The rows of a path; those that are too long or faulty are counted by reason, never cut.

    Args:
        path: a file, or a folder or a glob, whose lines are counted on from file to file.
        max_length: tokens that a sequence may have.
    Raises:
        UserError: the file is not there, or no row of it can be used.
    """
    rows, set_aside, first = [], Counter(), {}
    for number, row in _numbered(path):
        try:
            if isinstance(row, Fault):
                raise RowError(row.reason.partition(":")[0])
            sample = make(row, tokenizer)
            if max(len(tokens) for tokens in sample.sequences) > max_length:
                raise RowError("longer than max_length")
            rows.append(replace(sample, line=number))
        except RowError as error:
            set_aside[error.what] += 1
            first.setdefault(error.what, number)
    found = Samples(rows, dict(set_aside), first, path)
    if not rows:
        raise UserError(
            "no row can be used", where=path, found=found.reasons or "an empty file", expected="at least one usable row",
            way_out="loosen select.minimum, raise max_length, or generate more",
        )  # fmt: skip
    return found
