"""Did the selection help? SFT of the round once more on three sets of its candidates, over several seeds.

selected    what selection has kept, as in datasets/sft.jsonl
random      as many of the candidates, drawn anew by each seed
unfiltered  all candidates that may be trained on at all

All arms start from the same model, and take as many steps of the same batch; the dialogues of `data.sft` are in all of
them. The seed of a fit is the same in all arms. Each policy is measured on the held-out rows and then let go.

Writes `ablation.json`; until then what is done lies in `.ablation/`. The candidates of round 0 come from the models that
the run was given, so the stage is of that round alone.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_sdg.evaluation import ablation, files, held_out, measures
from nemo_sdg.evaluation.ablation import ARMS, FILE
from nemo_sdg.errors import CheckpointError
from nemo_sdg.quality.rules import may_teach, usable
from nemo_sdg.records import Decision
from nemo_sdg.stages import examples, fitting
from nemo_sdg.stages.context import Context
from nemo_sdg.stages.examples import Maker, line_file
from nemo_sdg.store import StageStore, commit_file, commit_json, read_json
from nemo_sdg.store.files import dump
from nemo_sdg.store.fits import Fit
from nemo_sdg.store.seals import CLEANED

WORK = ".ablation"
_FIT = Fit("policy", "sft")


def run(context: Context) -> dict[str, Any]:
    """Trains and measures what is missing.

    Returns:
        What `evaluation.ablation.compared` says of the exact match, with "seeds", "rows" by arm and "values" by arm; {} in
        other rounds than the first.
    Raises:
        CheckpointError: the model that the arms start from has no weights any more.
    """
    seeds, work = context.config.evaluate.ablation_seeds, context.folder / WORK
    if context.round > 0:
        return {}
    told = context.on_writer(lambda: read_json(context.folder / FILE))
    if told is not None and ablation.finished(context.config.evaluate, told):
        return told
    start = _start(context)
    if context.on_writer((Path(start) / CLEANED).is_file):
        raise CheckpointError(
            "the weights that all arms of the ablation start from were deleted by `nemo-sdg clean`, or by keep.*",
            where=start, found=f"what the model was, in {CLEANED}", expected="its weights",
            way_out="set evaluate.ablation=false, or ask for the ablation in a new run from its beginning",
        )  # fmt: skip
    done = context.on_writer(lambda: read_json(work / FILE)) or {"rows": {}, "values": {}}
    if told is not None and not done["values"]:  # more seeds than it had
        done = {"rows": told["rows"], "values": _by_seed(told)}
    for seed in range(seeds):
        for arm in ARMS:
            if f"{arm}-{seed}" not in done["values"]:
                rows, value = _arm(context, work, arm, seed)
                done["rows"][arm], done["values"][f"{arm}-{seed}"] = rows, value
                if context.mesh.writer:
                    commit_json(work / FILE, done)
                    shutil.rmtree(work / f"{arm}-{seed}")
                context.mesh.barrier()
    values = {arm: [done["values"][f"{arm}-{seed}"] for seed in range(seeds)] for arm in ARMS}
    result = {"seeds": seeds, "rows": done["rows"], "values": values, **ablation.compared(values)}
    if context.mesh.writer:
        commit_json(context.folder / FILE, result)
        shutil.rmtree(work)
    context.mesh.barrier()
    return result


def _start(context: Context) -> Path | str:
    """The model that all arms are trained from."""
    return context.config.models.base if context.config.sft.start_from == "base" else context.model("policy")


def _by_seed(told: dict[str, Any]) -> dict[str, float]:
    return {f"{arm}-{seed}": value for arm, values in told["values"].items() for seed, value in enumerate(values)}


def _arm(context: Context, work: Path, arm: str, seed: int) -> tuple[int, float]:
    """(rows that a policy was trained on, its exact match)"""
    place = work / f"{arm}-{seed}"
    rows = context.on_writer(lambda: _write(context, place / "datasets", arm, seed))
    title = f"ablation, {arm}, seed {seed}"
    fitting.train(
        context, _FIT, title=f"train {title}", start=_start(context), datasets=place / "datasets", out=place / "policy",
        seed=context.config.run.seed + (seed << 24),
    )  # fmt: skip
    role, held = context.local("policy", place / "policy"), files.read(context.config)
    asked = [*held.exact_match, *(row for row, _ in held.instructions)]
    said = held_out.asked(role, asked, context.mesh, context.place(role), context.console, f"evaluate {title}")
    context.residents.clear()
    found = measures.of_policy(held, said)
    return rows, found["policy"]["exact_match"] if held.exact_match else found["instructions"]["prompt_strict"]


def _write(context: Context, folder: Path, arm: str, seed: int) -> int:
    """The rows of an arm, as SFT reads them, and beside them those of the round's validation; how many there are."""
    lines = list(_lines(context, arm, seed))
    folder.mkdir(parents=True, exist_ok=True)
    commit_file(folder / line_file("sft", "train"), b"".join(map(dump, lines)))
    held_out = context.folder / "datasets" / line_file("sft", "validation")
    if held_out.is_file():
        copy = folder / line_file("sft", "validation")
        copy.parent.mkdir(exist_ok=True)
        if not copy.exists():
            os.link(held_out, copy)
    return len(lines)


def _lines(context: Context, arm: str, seed: int) -> Iterator[dict[str, Any]]:
    maker = Maker(context.config)
    kept, candidates = [], []
    for row in StageStore.finished(context.folder / "decisions").read():
        decision = Decision.believed(row)
        if not may_teach(decision.reason) or usable(decision.response):
            continue  # an answer of an evaluation, a person's data, what no training takes: no arm may learn that
        made = maker.sft(dataclasses.replace(decision, kept=True))
        lines = [one.line for one in made if one.split == "train"] if isinstance(made, list) else []
        candidates += lines
        kept += lines if decision.kept else []
    if arm == "random":
        chosen = random.Random(f"ablation {context.config.run.seed} {seed}").sample(range(len(candidates)), len(kept))
        candidates = [candidates[index] for index in sorted(chosen)]
    yield from kept if arm == "selected" else candidates
    for kind, made in examples.from_files(maker, context.config):
        if kind == "sft" and isinstance(made, list):
            yield from (one.line for one in made if one.split == "train")
