"""In the loop: a fit that learns from what its own policy says now, judged by a resident reward model.

Every so many steps the live weights answer prompts, the reward model scores the answers, the rules of selection choose,
and the next steps train on what was chosen: rejection sampling for SFT, pairs for preference tuning. The weights that
train are the weights that generate; nothing is copied or reloaded (`asking` does it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from nemo_sdg.config import Generate, Preference, Select, Training, fingerprint, rule_digests
from nemo_sdg.engine.backends import Scorer
from nemo_sdg.errors import ConfigError
from nemo_sdg.models.templates import preference_texts
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.quality.pairs import REWARD, pairs_of
from nemo_sdg.records import Decision, Pair, Prompt
from nemo_sdg.store import read_json
from nemo_sdg.training.batches import GlobalBatches
from nemo_sdg.training.preference import preference_sample
from nemo_sdg.training.samples import Sample, dialogue_sample

FOLDER = "online"
"""Where a fit keeps the rows that it made and learned from."""
TOLD = ("asked", "scored", "kept", "samples", "tokens", "set_aside", "mean")
"""What is told of an interval."""
Teach = Callable[[Sequence[Decision], Tokenizer], list[Sample]]
"""What is learned from the answers to one prompt, all of them judged. A RowError leaves the prompt out; its reason is counted."""


def best_answers(rows: Sequence[Decision], tokenizer: Tokenizer) -> list[Sample]:
    """Rejection sampling: the answers that selection has kept, as SFT samples."""
    kept = [row for row in rows if row.kept]
    return [
        dialogue_sample([*row.messages, {"role": "assistant", "content": row.response}], tokenizer) for row in kept
    ]


@dataclass(frozen=True)
class OwnPairs:
    """Pairs of the policy's own answers, chosen as in a run, as samples of preference tuning."""

    preference: Preference
    select: Select

    def __call__(self, rows: Sequence[Decision], tokenizer: Tokenizer) -> list[Sample]:
        pairs, _ = pairs_of(rows, self.preference, self.select)
        return [self._sample(pair, tokenizer) for pair in pairs]

    @staticmethod
    def _sample(pair: Pair, tokenizer: Tokenizer) -> Sample:
        rewards = {"chosen_reward": pair.score_chosen, "rejected_reward": pair.score_rejected}
        texts = preference_texts(pair.messages, pair.chosen, pair.rejected)
        return preference_sample({**texts, **rewards}, tokenizer)


@dataclass(frozen=True, kw_only=True)
class Online:
    """Who answers what, who judges it, and what is learned from it."""

    prompts: Sequence[Prompt]
    """Asked in this order, over and over."""
    scorer: Scorer
    """The resident reward model, on the same ranks."""
    every: int
    """Steps between two times of asking."""
    prompts_at_once: int
    """Prompts that are asked each time."""
    generate: Generate
    """How the policy answers: samples of each prompt, their length, temperature, slots."""
    select: Select
    """Which answers are kept. Its `per_prompt` is 1 for the best of each prompt."""
    teach: Teach = best_answers
    """`best_answers` for SFT, `OwnPairs` for DPO and RPO; or a function or dataclass of one's own."""
    seed: int = 1234

    @property
    def identity(self) -> dict[str, Any]:
        """What the rows depend on besides the policy."""
        told = {key: asdict(getattr(self, key)) for key in ("generate", "select")}
        prompts = fingerprint([prompt.to_row() for prompt in self.prompts])  # a right answer stands among the other columns
        teach = repr(self.teach) if is_dataclass(self.teach) else rule_digests([self.teach])
        numbers = {key: getattr(self, key) for key in ("every", "prompts_at_once", "seed")}
        return {**told, **numbers, "prompts": prompts, "scorer": self.scorer.identity, "teach": teach}

    def check(self, task: str, settings: Training, virtual_stages: int) -> None:
        """Raises ConfigError where a fit with these settings cannot learn in the loop."""
        pairs = isinstance(self.teach, OwnPairs)
        if task == "reward":
            raise ConfigError("a reward model gives no answers to learn from", where="online", found=task,
                              expected="sft or preference")  # fmt: skip
        if pairs != (task == "preference") and (pairs or self.teach is best_answers):
            raise ConfigError(
                f"{task} does not learn from these samples", where="online.teach",
                found="OwnPairs" if pairs else "best_answers", expected="best_answers" if pairs else "OwnPairs",
            )  # fmt: skip
        if pairs and self.teach.preference.judge != REWARD:
            raise ConfigError("in the loop nobody is asked which of two is better", where="online.teach.preference.judge",
                              found=self.teach.preference.judge, expected=REWARD)  # fmt: skip
        for name in ("every", "prompts_at_once"):
            if getattr(self, name) < 1:
                raise ConfigError("it must be positive", where=f"online.{name}", found=getattr(self, name), expected="1 or more")
        if not self.prompts:
            raise ConfigError("there is nobody to answer", where="online.prompts", found="no prompts", expected="1 or more")
        if settings.packed_sequence_size is not None:
            raise ConfigError(
                "a fit that learns in the loop does not pack: how many rows a step has must be known before them",
                where="packed_sequence_size", found=settings.packed_sequence_size, expected="null",
            )  # fmt: skip
        if virtual_stages > 1:
            raise ConfigError("a policy in virtual stages cannot generate", where="topology.virtual_stages",
                              found=virtual_stages, expected="1")  # fmt: skip

    def asked(self, step: int) -> list[Prompt]:
        """The prompts of the interval that begins with this step."""
        first = step // self.every * self.prompts_at_once
        return [self.prompts[i % len(self.prompts)] for i in range(first, first + self.prompts_at_once)]


class LiveBatches(Dataset):
    """The rows of `steps` global batches as `GlobalBatches` has them, but known only from interval to interval.

    An interval's samples are taken in epochs of their own until its steps are full.
    """

    def __init__(
        self,
        *,
        steps: int,
        global_batch_size: int,
        every: int,
        seed: int,
        longest: int,
        sequences: int = 1,
        unit: int,
        padded_together: int | None,
    ) -> None:
        """
        Args:
            longest: tokens that a sequence may have.
            sequences: of a sample, which has a row of its own: two of a pair.
        """
        self.rows_per_step, self.longest, self._every, self._seed = global_batch_size, longest, every, seed
        self._options = {"unit": unit, "padded_together": padded_together, "global_batch_size": global_batch_size}
        self.step_widths = [longest * sequences] * steps
        """Tokens of a row in each step; the most that there may be until its interval is known."""
        self._intervals: dict[int, GlobalBatches] = {}

    def __len__(self) -> int:
        return len(self.step_widths) * self.rows_per_step

    def knows(self, step: int) -> bool:
        return step // self._every in self._intervals

    def feed(self, step: int, samples: list[Sample]) -> int:
        """Takes the samples of the interval that `step` lies in; the tokens of its rows, without padding."""
        number = step // self._every
        first = number * self._every
        steps = min(self._every, len(self.step_widths) - first)
        made = GlobalBatches(samples, steps=steps, seed=self._seed * 1_000_003 + number, **self._options)
        self._intervals = {number: made}  # those before are behind us
        self.step_widths[first : first + steps] = made.step_widths
        return made.num_tokens

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        number, offset = divmod(rows[0], self._every * self.rows_per_step)
        return self._intervals[number].__getitems__([offset + row - rows[0] for row in rows])


def told(folder: Path) -> list[dict[str, Any]]:
    """What each interval made: {"step", "asked", "scored", "kept", "samples", "tokens", "set_aside", "mean"}.

    Answers that no model could score are asked for and not scored; `mean` is of what was scored, by name.
    """
    found = []
    for path in sorted(folder.glob("step-*.json")):
        made = read_json(path) or {}
        found.append({"step": int(path.stem[5:]), **{key: made[key] for key in TOLD}})
    return found
