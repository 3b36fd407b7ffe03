"""Training rows as token batches: what is in the loss, in which order rows come, how long a batch is.

Axes: B rows, S tokens, A reward outputs. Every rank reads all rows and knows every global batch, so the
order of rows and the length of each batch depend on the data and the seed alone, never on TP, PP or DP.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nemo_sdg.errors import RowError, UserError
from nemo_sdg.models import templates
from nemo_sdg.models.shapes import NUM_REWARD_OUTPUTS
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.training.losses import MISSING

MULTIPLE = 8
"""Batches are padded to a multiple of this many tokens."""


@dataclass(frozen=True)
class Example:
    """One row: its tokens and what the loss compares."""

    tokens: Tensor
    """Input tokens, int64 [S]."""
    labels: Tensor
    """SFT: the next token at each position, -1 where it is not in the loss, int64 [S]. Reward: float64 [A]."""


@dataclass(frozen=True)
class Examples:
    """The usable rows of a file, and why the others are not used."""

    rows: list[Example]
    set_aside: dict[str, int]
    where: Path


def sft_example(row: dict[str, Any], tokenizer: Tokenizer) -> Example:
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
    text, spans = templates.sft_text(messages)
    ids, starts = tokenizer.encode_with_offsets(text)
    trained = [any(begin <= start < end for begin, end in spans) for start in starts]
    labels = [token if in_loss else -1 for token, in_loss in zip(ids, trained)]
    return Example(torch.tensor(ids[:-1]), torch.tensor(labels[1:]))


def reward_example(row: dict[str, Any], tokenizer: Tokenizer) -> Example:
    """A row of the regression format: a prompt that ends in `<extra_id_2>` and nine labels, -100 where missing.

    Raises:
        RowError: the text does not end in the read-out token, or the labels are not nine finite numbers.
    """
    text, label = row.get("text"), row.get("label")
    if not isinstance(text, str) or not text.endswith(templates.LABEL):
        raise RowError(
            "the text does not end where the reward is read", found=repr(text)[-40:], expected=templates.LABEL
        )
    numbers = isinstance(label, list) and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in label)
    if not numbers or len(label) != NUM_REWARD_OUTPUTS or not all(abs(x) < float("inf") for x in label):
        raise RowError(
            "the label is not nine numbers", found=repr(label)[:80], expected=f"{NUM_REWARD_OUTPUTS} numbers"
        )
    if all(x == MISSING for x in label):
        raise RowError("the label has no score", found="nine times -100", expected="at least one score")
    return Example(torch.tensor(tokenizer.encode(text)), torch.tensor(label, dtype=torch.float64))


MAKERS = {"sft": sft_example, "reward": reward_example}


def read(task: str, path: Path, tokenizer: Tokenizer, max_length: int) -> Examples:
    """The rows of a training file; those that are too long or faulty are counted by reason, never cut.

    Raises:
        UserError: the file is not there, or no row of it can be used.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError("the training rows cannot be read", where=path, found=error.strerror) from error
    rows, set_aside = [], Counter()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            example = MAKERS[task](_parsed(line), tokenizer)
            if len(example.tokens) > max_length:
                raise RowError("longer than max_length")
            if task == "sft" and not (example.labels >= 0).any():
                raise RowError("nothing to learn")
            rows.append(example)
        except RowError as error:
            set_aside[error.what] += 1
    if not rows:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in set_aside.items()) or "an empty file"
        raise UserError(
            "there is nothing to train on", where=path, found=reasons, expected="at least one usable row",
            way_out="loosen select.minimum, raise max_length, or generate more",
        )  # fmt: skip
    return Examples(rows, dict(set_aside), path)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RowError("not JSON") from error
    if not isinstance(row, dict):
        raise RowError("not a JSON object")
    return row


class GlobalBatches(Dataset):
    """All samples of a fit in order: sample i belongs to step i // global_batch_size.

    Each epoch is a new shuffle by (seed, epoch); a global batch may reach over the end of one. Within a global
    batch rows stand by length, so that those which are padded together need little of it.

    Args:
        padded_together: samples that get one width, a divisor of the global batch; None is the whole global batch,
            which pipeline stages need: they receive activations of the size that the step announces.
    """

    def __init__(
        self,
        task: str,
        rows: Sequence[Example],
        *,
        steps: int,
        global_batch_size: int,
        seed: int,
        padded_together: int | None = None,
    ) -> None:
        self.task, self.rows = task, rows
        self.padded_together = padded_together or global_batch_size
        epochs = -(-steps * global_batch_size // len(rows))
        order = torch.cat([_shuffle(len(rows), seed, epoch) for epoch in range(epochs)])[: steps * global_batch_size]
        length_of = torch.tensor([len(row.tokens) for row in rows])
        by_length = length_of[order].view(steps, global_batch_size).sort(dim=1, stable=True).indices
        self.order = order.view(steps, global_batch_size).gather(1, by_length).flatten()
        lengths = length_of[self.order]
        self.num_tokens = int(lengths.sum())
        """Tokens of all samples, without padding."""
        self.widths = _padded(lengths.view(-1, self.padded_together).amax(dim=1))
        """Tokens that each group of samples is padded to."""
        self.step_widths = _padded(lengths.view(steps, global_batch_size).amax(dim=1))
        """The same for each whole step."""

    def __len__(self) -> int:
        return len(self.order)

    def __getitems__(self, samples: list[int]) -> dict[str, Tensor]:
        """One micro batch; all its samples are padded together."""
        width = self.widths[samples[0] // self.padded_together]
        rows = [self.rows[int(self.order[sample])] for sample in samples]
        batch = {
            "tokens": _fill(rows, "tokens", width, padding=0),
            "position_ids": torch.arange(width).expand(len(rows), width).contiguous(),
            "lengths": torch.tensor([len(row.tokens) for row in rows]),
        }
        if self.task == "reward":
            batch["labels"] = torch.stack([row.labels for row in rows])
        else:
            batch["labels"] = _fill(rows, "labels", width, padding=-1)
        return batch


def _fill(rows: list[Example], field: str, width: int, *, padding: int) -> Tensor:
    filled_BS = torch.full((len(rows), width), padding, dtype=torch.int64)
    for row_S, row in zip(filled_BS, rows):
        values = getattr(row, field)
        row_S[: len(values)] = values
    return filled_BS


def _padded(lengths: Tensor) -> list[int]:
    return (-(-lengths // MULTIPLE) * MULTIPLE).tolist()


def _shuffle(count: int, seed: int, epoch: int) -> Tensor:
    key = int.from_bytes(hashlib.sha256(f"order\x00{seed}\x00{epoch}".encode()).digest()[:7], "little")
    return torch.randperm(count, generator=torch.Generator().manual_seed(key))
