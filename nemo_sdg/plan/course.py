"""The course of a run: what is done once, what in each round how many times, and how long each of it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nemo_sdg.config import RunConfig, Training
from nemo_sdg.config.starting import GROUPS, begins_with
from nemo_sdg.models.shapes import NemotronShape
from nemo_sdg.parallel.topology import Grid, Grids
from nemo_sdg.plan.activations import ITEM_BYTES, MicroBatch
from nemo_sdg.plan.counting import count_rows
from nemo_sdg.plan.machine import Machine
from nemo_sdg.plan.memory import GRADIENT_BYTES, ModelPlan, StagePlan, stage_plans
from nemo_sdg.plan.timing import Asked, Laid, generate_s, score_s, step_s
from nemo_sdg.records import row_files
from nemo_sdg.store.fits import fits
from nemo_sdg.training.widths import padded

ROLES = {"sft": "train sft", "preference": "train preference", "reward": "train rm"}
"""How the plan calls a fit of a task."""
_ARMS = 3
"""Sets of rows that an ablation trains on (`evaluation.ablation`)."""


@dataclass(frozen=True)
class Took:
    """One part of a round, or of what is done once."""

    name: str
    seconds: float
    loading: float
    """Of them, reading models and writing checkpoints."""
    tokens: float
    """That it makes or goes through; 0 where none are counted."""


@dataclass(frozen=True)
class Course:
    """What the time of a run is estimated from."""

    config: RunConfig
    grids: Grids
    dtype: str
    machine: Machine
    models: list[ModelPlan]
    prompts: int | None
    prompt_tokens: float
    """Estimated where nobody says."""

    @property
    def asked(self) -> Asked | None:
        """What the policy answers in a round; None where there is no prompt to count."""
        if not self.prompts:
            return None
        settings, expect = self.config.generate, self.config.expect
        most = min(settings.max_tokens, self._shape("generate").seq_length)
        mean = min(most, expect.response_tokens or max(settings.min_tokens, most / 2))
        tokens = expect.prompt_tokens or self.prompt_tokens
        return Asked(self.prompts, settings.samples + sum(settings.others.values()), tokens, mean, most)

    def _shape(self, role: str) -> NemotronShape:
        return next((m.shape for m in self.models if m.role == role), self.models[0].shape)

    def laid(self, role: str, grid: Grid, shape: NemotronShape, reward: bool) -> Laid:
        stages = stage_plans(self.config, role, shape, reward, grid, None, self.dtype, self.machine.gpu)
        return Laid(shape, reward, grid, self.dtype, self.machine, stages)

    @cached_property
    def fits(self) -> dict[str, tuple[NemotronShape, bool]]:
        """The tasks that a round trains, or that are trained before it, each with the model's shape and whether it is a
        reward model."""
        tasks = dict.fromkeys([*(GROUPS[kind] for kind in begins_with(self.config)), *(f.task for f in fits(self.config))])
        here = {m.role: m.shape for m in self.models}
        base = here.get("train sft", here.get("train rm", here.get("generate")))
        return {task: (shape, task == "reward") for task in tasks if (shape := here.get(ROLES[task], base)) is not None}

    def stages_of(self, task: str) -> list[StagePlan]:
        """What a fit takes on each stage."""
        return self.laid(ROLES[task], self.grids.train, *self.fits[task]).stages

    def round(self) -> list[Took]:
        """The parts of a round, in their order."""
        return [*self._answering(), *self._training(), *self._evaluating("evaluate")]

    def once(self) -> list[Took]:
        """What is done once in a run: models that it begins with, and in round 0 measuring those and the ablation."""
        start = [self._fit(f"train start/{kind}", GROUPS[kind]) for kind in begins_with(self.config) if GROUPS[kind] in self.fits]
        return [*start, *self._evaluating("evaluate the first models"), *self._ablation()]

    def fit_s(self, laid: Laid, task: str) -> float:
        """Seconds of the steps of a fit."""
        settings, grid = getattr(self.config, task), laid.grid
        pairs = task == "preference" or (task == "reward" and self.config.reward.pairs)
        largest = MicroBatch.of(settings, pairs, laid.shape.seq_length)
        longest = (2 if pairs else 1) * min(settings.max_length, laid.shape.seq_length)
        mean = min(longest, self.config.expect.row_tokens or longest / 2)
        rows = settings.micro_batch_size
        # What is padded together: `training.batches.layout`.
        together = rows * grid.dp if grid.pp == 1 else settings.global_batch_size
        width, pieces = padded(round(self._width(settings, mean, longest, together, grid.pp))), 2.0 * rows if pairs else 0.0
        samples = settings.global_batch_size / grid.dp
        micro_batches = max(1, round(samples / rows))
        if settings.packed_sequence_size is not None:
            micro_batches = max(1, round(samples * mean / (largest.width * rows)))
            width, pieces = largest.width, samples / micro_batches * (2 if pairs else 1)
        chunks = self.config.topology.virtual_stages if grid.pp > 1 else 1
        return settings.steps * step_s(
            laid, rows=rows, width=width, pieces=pieces, micro_batches=micro_batches, chunks=chunks
        )

    def _width(self, settings: Training, mean: float, longest: float, together: int, pp: int) -> float:
        """Tokens that a row has with its padding, in the mean over micro batches.

        Where the longest row of all is known, lengths are taken to fall off exponentially: of n of them, sorted, the k-th
        is 1/n + ... + 1/(n - k + 1) of their mean above the shortest (Renyi, Acta Math. Acad. Sci. Hungar. 4, 1953). Rows
        of a step are sorted before they are padded (`training.batches.GlobalBatches`). Where it is not known, a micro batch
        is as wide as the mean and a pipeline as wide as the settings allow.
        """
        known, batch = self.config.expect.longest_row_tokens, settings.global_batch_size
        if known is None or settings.steps * batch == 1:
            return mean if pp == 1 else longest
        unit = max(0.0, min(known, longest) - mean) / (_harmonic(settings.steps * batch) - 1)
        groups = max(1, batch // together)
        tops = [_harmonic(batch) - _harmonic(batch - group * min(together, batch)) for group in range(1, groups + 1)]
        return mean + unit * max(0.0, sum(tops) / groups - 1)

    def read_s(self, laid: Laid) -> float:
        """Seconds in which all replicas read a model from the disk."""
        grid = laid.grid
        return self.machine.disk_s(sum(s.weights for s in laid.stages) * grid.tp * grid.dp, grid.size)

    def _answering(self) -> list[Took]:
        asked, found, settings = self.asked, [], self.config.generate
        for role, grid, reward in (("generate", self.grids.generate, False), ("score", self.grids.score, True)):
            model = next((m for m in self.models if m.role == role), None)
            if asked is None or model is None:
                continue
            laid = self.laid(role, grid, model.shape, reward)
            tokens = asked.prompts * asked.samples * asked.response_tokens
            if role == "generate":
                seconds = generate_s(laid, asked, settings.slots, settings.prefill_tokens)
            else:
                seconds = score_s(laid, asked, self.config.score.pack_tokens)
                tokens += asked.prompts * asked.prompt_tokens
            loading = self.read_s(laid)
            if self.machine.gpu and self.config.models.placement == "in_turn":  # it goes to the host when the other one comes
                loading += max(stage.weights for stage in laid.stages) / self.machine.host_bytes_s
            found.append(Took(role, seconds + loading, loading, tokens))
        return found

    def _training(self) -> list[Took]:
        return [self._fit(f"train {fit.folder}", fit.task) for fit in fits(self.config) if fit.task in self.fits]

    def _fit(self, name: str, task: str) -> Took:
        shape, reward = self.fits[task]
        laid, settings = self.laid(ROLES[task], self.grids.train, shape, reward), getattr(self.config, task)
        weights = sum(stage.weights for stage in laid.stages) * laid.grid.tp
        shards = laid.grid.tp * (laid.grid.dp if self.machine.gpu else 1)
        # Of adapters alone, where there are any: what has gradients.
        trained = sum(stage.gradients for stage in laid.stages) * laid.grid.tp * ITEM_BYTES[self.dtype] // GRADIENT_BYTES[self.dtype]
        restart = trained + sum(stage.optimizer for stage in laid.stages) * shards
        saves = (settings.steps - 1) // settings.restart_every if settings.restart_every else 0
        written = self.machine.disk_s(weights + saves * restart, laid.grid.size)
        moved = self.read_s(laid) + written + self.machine.fit_s
        steps = self.fit_s(laid, task)
        reference = 0.0
        if task == "preference":  # once through the pairs, without gradients
            passes = min(settings.steps, 1 + (self.prompts or 0) / settings.global_batch_size)
            reference = steps / settings.steps * passes / 3
        samples = settings.steps * settings.global_batch_size
        pairs = task == "preference" or (task == "reward" and settings.pairs)
        mean = self.config.expect.row_tokens or (2 if pairs else 1) * min(settings.max_length, shape.seq_length) / 2
        return Took(name, steps + reference + moved, moved, samples * mean)

    def _asked_s(self, role: str, count: int) -> float:
        """Seconds in which a model of the run answers or scores held-out rows, with reading it; 0 where there are none."""
        model, expect = next((m for m in self.models if m.role == role), None), self.config.expect
        if model is None or not count:
            return 0.0
        most = min(self.config.evaluate.max_tokens, model.shape.seq_length)
        asked = Asked(count, 1, expect.prompt_tokens or self.prompt_tokens, min(most, expect.response_tokens or most / 2), most)
        laid, settings = self.laid(role, model.grid, model.shape, model.reward), self.config.generate
        if role == "generate":
            return generate_s(laid, asked, settings.slots, settings.prefill_tokens) + self.read_s(laid)
        return score_s(laid, asked, self.config.score.pack_tokens) + self.read_s(laid)

    def _evaluating(self, name: str) -> list[Took]:
        """A policy and a reward model on what is held out; the first reward model judges the policy's answers."""
        evaluate = self.config.evaluate
        asked = sum(map(_rows, {evaluate.exact_match, evaluate.instructions, evaluate.win_rate}))  # the same file is asked once
        rated = _rows(evaluate.helpsteer2) + 2 * _rows(evaluate.rewardbench)
        seconds = self._asked_s("generate", asked)
        seconds += self._asked_s("score", rated) + self._asked_s("score", _rows(evaluate.win_rate))
        return [Took(name, seconds, 0.0, 0.0)] if seconds else []

    def _ablation(self) -> list[Took]:
        evaluate = self.config.evaluate
        if not evaluate.ablation or "sft" not in self.fits:
            return []
        one, count = self._fit("ablation", "sft"), _ARMS * evaluate.ablation_seeds
        seconds = one.seconds + self._asked_s("generate", sum(map(_rows, {evaluate.exact_match, evaluate.instructions})))
        return [Took("ablation", count * seconds, count * one.loading, count * one.tokens)]


def _harmonic(count: int) -> float:
    """1 + 1/2 + ... + 1/n."""
    if count < 2:
        return float(count)
    return math.log(count) + 0.5772156649 + 1 / (2 * count) - 1 / (12 * count**2)


def _rows(path: str | None) -> int:
    files: list[Path] = row_files(path) if path is not None else []
    return sum(count_rows(file)[0] for file in files if file.is_file())
