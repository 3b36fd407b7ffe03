"""The live policy of a fit is asked, its answers are judged, and the next steps learn from them (`online`)."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from nemo_sdg.config import MISSING
from nemo_sdg.engine.backends import Refusal
from nemo_sdg.engine.backends.choosing import sampled
from nemo_sdg.engine.backends.local import LocalGenerator
from nemo_sdg.errors import RowError, StoreError, UserError
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel.agree import on_writer
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.quality import decide
from nemo_sdg.records import Decision, Prompt, Scored
from nemo_sdg.store import commit_json, read_json
from nemo_sdg.training.online import LiveBatches, Online
from nemo_sdg.training.samples import Sample


class OnlineSampling(pl.Callback):
    """Asks, scores, chooses and feeds, before the first step of each interval.

    What was made is committed before it is learned from, so a fit that goes on learns from the same rows.
    """

    def __init__(
        self,
        online: Online,
        batches: LiveBatches,
        tokenizer: Tokenizer,
        mesh: Mesh,
        folder: Path,
        reference: Callable[[list[Sample]], list[Sample]] | None = None,
    ) -> None:
        """
        Args:
            folder: where the rows that are learned from are kept.
            reference: adds what the reference policy says to pairs.
        """
        self.online, self.batches, self.tokenizer, self.mesh = online, batches, tokenizer, mesh
        self.folder, self.reference = folder, reference

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if self.batches.knows(step):
            return
        first = step // self.online.every * self.online.every
        path = self.folder / f"step-{first:08d}.json"
        rows = on_writer(self.mesh, lambda: (read_json(path) or {}).get("rows"))
        known = rows is not None
        if not known:
            if step != first:
                raise StoreError("the rows that these steps learn from are gone", where=path,
                                 way_out="remove the working folder to begin the fit again")  # fmt: skip
            rows = self._make(trainer.strategy.model[0], first)
        samples, set_aside = self._samples([Decision.from_row(row) for row in rows])
        if not samples:
            reasons = "".join(f", {count} x {reason}" for reason, count in set_aside.items())
            raise UserError(
                "there is nothing to learn from", where=f"online training, step {first}",
                found=f"nothing in {len(rows)} scored answers{reasons}",
                way_out="loosen what selection or pairs ask for, or ask for more samples or prompts",
            )  # fmt: skip
        tokens = self.batches.feed(step, samples if self.reference is None else self.reference(samples))
        if not known:
            learned = {"samples": len(samples), "tokens": tokens, "set_aside": set_aside}
            on_writer(self.mesh, lambda: self._commit(path, rows, learned))

    def _make(self, chunk: torch.nn.Module, step: int) -> list[dict[str, Any]]:
        """The judged answers to this interval's prompts, in their order, on every rank."""
        online, mesh = self.online, self.mesh
        asked = online.asked(step)
        # An id may come twice in one interval; its place makes it one of its own.
        named = [Prompt(f"{i}:{prompt.id}", prompt.messages, extra=prompt.extra) for i, prompt in enumerate(asked)]
        sampling = sampled(online.generate, seed=online.seed, round=step)
        with live(chunk) as model:
            generator = LocalGenerator(model, self.tokenizer, mesh, online.generate, {})
            made = generator.generate(named[mesh.dp_rank :: mesh.dp], sampling, online.generate.samples)
            answers = sorted((row for row in made if not isinstance(row, Refusal)), key=lambda row: _order(row.id))
            generator.close()
        scored = [row.to_row() for row in online.scorer.score(answers) if not isinstance(row, Refusal)]
        mesh.meet(may_stop=False)  # in the middle of a step: what was learned since the last restart point would be lost
        shares = [mesh.broadcast_object(scored, src=mesh.tp * replica) for replica in range(mesh.dp)]
        rows = sorted((row for share in shares for row in share), key=lambda row: _order(row["id"]))
        return [row.to_row() for row in decide([Scored.from_row(row) for row in rows], online.select)]

    def _samples(self, rows: list[Decision]) -> tuple[list[Sample], dict[str, int]]:
        """What is learned, and by reason how many prompts or samples are not."""
        samples: list[Sample] = []
        set_aside: Counter[str] = Counter()
        for _, of_prompt in groupby(rows, key=lambda row: row.prompt_id):
            try:
                made = self.online.teach(list(of_prompt), self.tokenizer)
            except RowError as error:
                set_aside[error.what] += 1
                continue
            short = [one for one in made if max(map(len, one.sequences)) <= self.batches.longest]
            if len(short) < len(made):
                set_aside["longer than max_length"] += len(made) - len(short)
            samples += short
        return samples, dict(set_aside)

    def _commit(self, path: Path, rows: list[dict[str, Any]], learned: dict[str, Any]) -> None:
        path.parent.mkdir(exist_ok=True)
        asked = self.online.prompts_at_once * self.online.generate.samples
        counts = {"asked": asked, "scored": len(rows), "kept": sum(row["kept"] for row in rows)}
        scores = defaultdict(list)
        for row in rows:
            for name, score in row["scores"].items():
                if score not in (None, MISSING):  # it was not finite, or this model does not give it
                    scores[name].append(score)
        means = {name: sum(given) / len(given) for name, given in scores.items()}
        commit_json(path, {**counts, **learned, "mean": means, "rows": rows})


@contextlib.contextmanager
def live(chunk: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The model that is being trained, ready to generate: the very weights, out of Megatron's wrappers.

    Sequence parallelism is off meanwhile (its lengths must divide by TP), and `no_grad` is on. Not `inference_mode`:
    what it touches could not be trained any more.
    """
    with contextlib.ExitStack() as stack:
        model = chunk
        while hasattr(model, "module"):
            model = model.module
            if getattr(getattr(model, "ddp_config", None), "overlap_param_gather", False):
                # The last step's parameters may not have arrived yet; they come with the next forward pass.
                model.disable_forward_pre_hook(param_sync=True)
                stack.callback(model.enable_forward_pre_hook)
        stack.enter_context(_whole_sequences(model))
        stack.enter_context(torch.no_grad())
        stack.callback(model.train, model.training)
        yield model.eval()


_SEQUENCE_PARALLEL = ("sequence_parallel", "scatter_to_sequence_parallel", "reduce_scatter_embeddings")


@contextlib.contextmanager
def _whole_sequences(model: torch.nn.Module) -> Iterator[None]:
    """Without sequence parallelism. Megatron's own switch puts it on everywhere afterwards, also where it was off."""
    owners = {id(owner): owner for part in model.modules() for owner in (part, getattr(part, "config", None))}
    changed = [
        (owner, name) for owner in owners.values() for name in _SEQUENCE_PARALLEL if getattr(owner, name, None) is True
    ]
    for owner, name in changed:
        setattr(owner, name, False)
    try:
        yield
    finally:
        for owner, name in changed:
            setattr(owner, name, True)


def _order(name: str) -> tuple[int, int]:
    """Place of the prompt and number of the sample in an answer's id."""
    place, _, rest = name.partition(":")
    return int(place), int(rest.rpartition("#")[2])
