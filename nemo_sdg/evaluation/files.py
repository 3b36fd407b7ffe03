"""The files of held-out rows that the settings name, read and checked before any model is loaded. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nemo_sdg.config import RunConfig
from nemo_sdg.errors import RowError, UserError
from nemo_sdg.evaluation.instructions import verifiable
from nemo_sdg.evaluation.rewardbench import Comparison, check_subset
from nemo_sdg.records import Fault, Labelled, Prompt, each_row, labelled, why_none
from nemo_sdg.records.fields import Message
from nemo_sdg.synthesis.requirements import Requirement


@dataclass
class HeldOut:
    """The rows that models are measured on; a list is empty where its setting is null."""

    exact_match: list[Prompt] = field(default_factory=list)
    helpsteer2: list[Labelled] = field(default_factory=list)
    rewardbench: list[Comparison] = field(default_factory=list)
    instructions: list[tuple[Prompt, list[Requirement]]] = field(default_factory=list)
    win_rate: list[Prompt] = field(default_factory=list)
    faulty: dict[str, int] = field(default_factory=dict)
    """By setting, the rows that cannot be used."""
    notes: list[str] = field(default_factory=list)
    """What a person should know of them."""

    @property
    def prompts(self) -> list[Prompt]:
        """All that a policy is asked."""
        return [*self.exact_match, *(row for row, _ in self.instructions), *self.win_rate]


def kinds(config: RunConfig) -> dict[str, Any]:
    """What each file holds, by setting: kinds for `records.each_row`; all have `messages`."""
    prompts = dict.fromkeys(("exact_match", "instructions", "win_rate"), Prompt)
    return {**prompts, "helpsteer2": labelled(config.reward.own), "rewardbench": Comparison}


def conversations(config: RunConfig) -> list[tuple[Message, ...]]:
    """What the held-out rows ask, for whoever keeps them out of training."""
    files = config.evaluate.files.items()
    return [row.messages for name, path in files for _, row in each_row(path, kinds(config)[name])
            if not isinstance(row, Fault)]  # fmt: skip


def read(config: RunConfig) -> HeldOut:
    """The rows that can be used; the others are counted.

    Raises:
        UserError: a file cannot be read, or no row of it can be used.
        RowError: a subset that RewardBench does not have; in a strict run, any row that cannot be used.
    """
    found = HeldOut()
    for name, path in config.evaluate.files.items():
        rows, faults = [], []
        for number, row in each_row(path, kinds(config)[name]):
            if not isinstance(row, Fault):
                try:
                    row = _FINISH.get(name, _as_it_is)(row, "row")
                except RowError as error:
                    row = Fault(str(path), number, str(error).removeprefix("row: "))
            (faults if isinstance(row, Fault) else rows).append(row)
        if faults and config.run.strict:
            way_out = "correct it, or do without strict"
            raise RowError(faults[0].reason, where=faults[0].place, way_out=way_out)
        if not rows:
            raise UserError(
                "no held-out row can be used", where=path, found=why_none(faults), expected=_EXPECTED[name],
                way_out=f"correct the file, or leave evaluate.{name} out",
            )  # fmt: skip
        setattr(found, name, rows)
        found.faulty[name] = len(faults)
        if faults:
            told = f"{len(faults):,} of {len(rows) + len(faults):,} rows of {path} cannot be used"
            found.notes.append(f"{told}; the first is {faults[0].place}: {faults[0].reason}")
    for row in found.rewardbench:
        check_subset(row.subset, row.where)
    return found


_EXPECTED = {
    "exact_match": '"prompt" and "answer" as text',
    "helpsteer2": '"prompt", "response" and five attributes from 0 to 4',
    "rewardbench": '"prompt", "chosen", "rejected" and "subset" as text',
    "instructions": '"prompt" and "checks" with a "spec" in one of them',
    "win_rate": '"prompt" or "messages"',
}


def _as_it_is(row: Any, where: str) -> Any:
    return row


def _with_answer(row: Prompt, where: str) -> Prompt:
    answer = row.extra.get("answer")
    if not isinstance(answer, str) or not answer.strip():  # nobody who says nothing is right
        raise RowError('the row has no "answer" that is text', where=where)
    return row


def _with_checks(row: Prompt, where: str) -> tuple[Prompt, list[Requirement]]:
    return row, verifiable(row, where)


_FINISH = {"exact_match": _with_answer, "instructions": _with_checks}
