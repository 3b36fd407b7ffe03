"""What of a round becomes an example to train on, and why the rest does not. No file is written here.

A generated example is named by its response's id, a pair by both (`p#1>p#0`), a row that people judged by its file and
place (`helpsteer2:12`, `labelled/0:7`, `preference/0:3`; a second copy ends in `~2`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemo_sdg.config import ATTRIBUTES, MISSING, Data, RunConfig
from nemo_sdg.errors import RowError
from nemo_sdg.config.judging import compares
from nemo_sdg.evaluation.files import conversations
from nemo_sdg.quality.pairs import Compared, pairs_of
from nemo_sdg.quality.rules import may_teach
from nemo_sdg.records import Decision, Dialogue, Fault, Labelled, Pair
from nemo_sdg.records import each_row, hash_of, labelled, shortest_float32
from nemo_sdg.records.fields import Message
from nemo_sdg.stages import shapes
from nemo_sdg.store import StageStore

CONFIGS = {"sft": "sft", "preference": "preference", "reward": "regression"}
"""File of rows -> its name in the Hugging Face folder."""
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Example:
    """One row of a dataset."""

    split: str
    line: dict[str, Any]
    """In NeMo's shape, with its id."""
    columns: dict[str, Any]
    """In TRL's shape."""


def line_file(kind: str, split: str) -> str:
    """Where NeMo's rows lie in the folder of datasets; what trains is at the top."""
    return f"{kind}.jsonl" if split == "train" else f"{split}/{kind}.jsonl"


def table_file(kind: str, split: str) -> str:
    return f"hf/{CONFIGS[kind]}/{split}.parquet"


def labelled_sources(data: Data) -> list[tuple[str, str, float]]:
    """(name in ids, path, weight) of the files whose rows people labelled."""
    published = [("helpsteer2", data.helpsteer2, 1.0)] if data.helpsteer2 else []
    return published + [(f"labelled/{i}", path, weight) for i, (path, weight) in enumerate(data.labelled.items())]


def dialogue_sources(data: Data) -> list[tuple[str, str, float]]:
    """(name in ids, path, weight) of the files of dialogues to learn from."""
    return [(f"sft/{i}", path, weight) for i, (path, weight) in enumerate(data.sft.items())]


def preference_sources(data: Data) -> list[tuple[str, str, float]]:
    """(name in ids, path, weight) of the files whose pairs people judged."""
    return [(f"preference/{i}", path, weight) for i, (path, weight) in enumerate(data.preference.items())]


class HeldOut:
    """The conversations that evaluation asks about; none of them may be trained on, also not as an earlier turn."""

    def __init__(self, config: RunConfig) -> None:
        self.keys = set(map(_key, conversations(config)))

    def __contains__(self, messages: Sequence[Message]) -> bool:
        if not self.keys:
            return False
        asked = (end for end, turn in enumerate(messages, start=1) if turn["role"] == "user")
        return any(_key(messages[:end]) in self.keys for end in asked)


class Maker:
    """Makes examples by the settings of a run. Each method gives them, or the reason why there is none."""

    def __init__(self, config: RunConfig, compared: Compared | None = None) -> None:
        """
        Args:
            compared: what the judge has said of responses, where `preference.judge` is llm; see `verdicts`.
        """
        self._config, self._held_out, self._compared = config, HeldOut(config), compared
        self._own = config.reward.own

    def sft(self, row: Decision) -> list[Example] | str:
        """A kept response, as a dialogue to learn."""
        if not row.kept:
            return "not selected"
        if row.messages in self._held_out:
            return "held out"
        said = (row.id, row.messages, row.response)
        return [self._example(row.messages, shapes.chat_row(*said), shapes.chat_columns(*said, row.scores, self._own))]

    def reward(self, row: Decision) -> list[Example] | str:
        """Any scored response, kept or not, as a lesson for the reward model."""
        if not may_teach(row.reason):
            return str(row.reason)
        return self._regression(row.id, row.messages, row.response, row.scores)

    def pairs(self, rows: Sequence[Decision]) -> list[Example] | str:
        """The preference pairs of one prompt."""
        if rows[0].messages in self._held_out:
            return "held out"
        pairs, reason = pairs_of(rows, self._config.preference, self._config.select, self._compared)
        return reason or [self._preference(pair) for pair in pairs]

    def labelled(self, row: Labelled, name: str, weight: float) -> list[Example] | str:
        """A row that people labelled, as often as its weight says."""
        said = (row.messages, row.response, {name: shortest_float32(label) for name, label in row.labels.items()})
        return self._copies(row, name, weight, lambda copy: self._regression(copy, *said))

    def dialogue(self, row: Dialogue, name: str, weight: float) -> list[Example] | str:
        """A dialogue of a user's file, as often as its weight says."""
        if row.messages in self._held_out:
            return "held out"
        nobody = dict.fromkeys(ATTRIBUTES, MISSING)

        def make(copy: str) -> list[Example]:
            said = (copy, row.messages, row.response)
            return [self._example(row.messages, shapes.chat_row(*said), shapes.chat_columns(*said, nobody))]

        return self._copies(row, name, weight, make)

    def preferred(self, pair: Pair, name: str, weight: float) -> list[Example] | str:
        """A pair that people judged, as often as its weight says."""
        if pair.extra.get("split", "train") != "train":
            return "not of its file's train split"
        if pair.margin == 0:
            return "tie"
        if pair.messages in self._held_out:
            return "held out"
        return self._copies(pair, name, weight, lambda copy: [self._preference(dataclasses.replace(pair, id=copy))])

    def _copies(
        self, row: Dialogue | Labelled | Pair, name: str, weight: float, make: Callable[[str], list[Example] | str]
    ) -> list[Example] | str:
        count = math.floor(weight) + (_unit("weight", row.messages) < weight % 1)
        if self._split(row.messages) != "train":
            count = min(count, 1)  # a repeated row would count twice in what is measured
        if not count:
            return "left out by its weight"
        examples: list[Example] = []
        for copy in range(1, count + 1):
            made = make(name if copy == 1 else f"{name}~{copy}")
            if isinstance(made, str):
                return made
            examples += made
        return examples

    def _regression(self, name: str, messages: Sequence[Message], response: str, scores: Any) -> list[Example] | str:
        if messages in self._held_out:
            return "held out"
        said = (name, messages, response, scores)
        try:
            line = shapes.regression_row(*said, self._config.reward.outputs)
            return [self._example(messages, line, shapes.regression_columns(*said, self._own))]
        except RowError as error:
            return error.what

    def _preference(self, pair: Pair) -> Example:
        return self._example(pair.messages, shapes.preference_row(pair), shapes.preference_columns(pair, self._own))

    def _example(self, messages: Sequence[Message], line: dict, columns: dict) -> Example:
        return Example(self._split(messages), line, columns)

    def _split(self, messages: Sequence[Message]) -> str:
        return SPLITS[_unit("split", messages) < self._config.data.validation_share]


def paths(data: Data) -> list[str]:
    """The users' files of dialogues, labelled rows and pairs."""
    return [path for _, path, _ in (*dialogue_sources(data), *labelled_sources(data), *preference_sources(data))]


def from_files(maker: Maker, config: RunConfig) -> Iterator[tuple[str, list[Example] | str | Fault]]:
    """(kind, its examples, the reason why it has none, or the fault) of each row of the users' files."""
    data = config.data
    sources = [("sft", Dialogue, maker.dialogue, dialogue_sources(data))]
    sources += [("reward", labelled(config.reward.own), maker.labelled, labelled_sources(data))]
    sources += [("preference", Pair, maker.preferred, preference_sources(data))]
    for kind, shape, make, files in sources:
        for name, path, weight in files:
            for number, row in each_row(path, shape):
                yield kind, row if isinstance(row, Fault) else make(row, f"{name}:{number}", weight)


def verdicts(config: RunConfig, folder: Path) -> tuple[Compared | None, list[str]]:
    """What the judge has said of the responses of a round, where it was asked; and the digest of that."""
    if not compares(config):
        return None, []
    store = StageStore.finished(folder / "compared")
    return {row["id"]: (row["better"], row["reason"]) for row in store.read()}, [store.digest]


def generated(maker: Maker, kind: str, rows: Sequence[Decision]) -> Iterator[Example]:
    """What all decisions of one prompt give for a kind of dataset."""
    make = {"sft": maker.sft, "reward": maker.reward}
    for made in [maker.pairs(rows)] if kind == "preference" else map(make[kind], rows):
        yield from made if isinstance(made, list) else ()


def _unit(purpose: str, messages: Sequence[Message]) -> float:
    """A number from 0 up to 1 that belongs to a conversation's first user turn, however it goes on.

    So conversations that begin alike are never parted, neither by a split nor by a weight.
    """
    return _unit_of(purpose, next(turn["content"] for turn in messages if turn["role"] == "user"))


@lru_cache(maxsize=32)  # what becomes of the answers to one prompt is asked in a row
def _unit_of(purpose: str, first: str) -> float:
    return int(hash_of([purpose, first.strip()]), 16) / 16**16


def _key(messages: Sequence[Message]) -> str:
    return hash_of([[turn["role"], turn["content"].strip()] for turn in messages if turn["role"] != "system"])
