"""Assemble: the round's decisions and what people labelled become the files that training and others read.

datasets/sft.jsonl         kept responses in NeMo's chat format
datasets/preference.jsonl  pairs of responses in NeMo-Aligner's format for DPO and RPO
datasets/reward.jsonl      every scored response with its scores, and labelled rows, as regression rows
datasets/validation/       the same three, of the prompts that `data.validation_share` sets apart
datasets/hf/               the same rows as parquet, for `datasets.load_dataset`, with the dataset card
datasets/faulty.jsonl      rows of the users' files that were set aside
datasets/README.md         the dataset card
datasets/summary.json      totals by kind, digests of all files

The folder appears whole, by one rename. A prompt that an evaluation holds out is in none of the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_sdg.config import RunConfig, dataset_settings, fingerprint
from nemo_sdg.errors import UserError
from nemo_sdg.parallel import stopping
from nemo_sdg.records import Decision, Fault
from nemo_sdg.stages import card, examples, shapes
from nemo_sdg.stages.joining import Joined
from nemo_sdg.stages.context import Context
from nemo_sdg.stages.examples import CONFIGS, Example, Maker, line_file, table_file
from nemo_sdg.stages.tally import Tally
from nemo_sdg.store import DatasetFolder, StageStore, lines, rows_digest
from nemo_sdg.store.datasets import read_finished
from nemo_sdg.store.fits import fits
from nemo_sdg.store.waves import begun_parts, part_folders, round_folders

VERSION = 3
"""Raised when the code changes what the same settings give."""
_LESSONS = {
    "sft": ("rows in", "selected", "loosen select.minimum"),
    "preference": ("prompts in", "with a pair", "lower preference.margin"),
    "reward": ("rows in", "selected", "loosen select.minimum"),
}
"""By kind of dataset: what came in, what became of it, and which setting gives more of it."""


def run(context: Context) -> dict:
    """Totals by kind of dataset, {"sft": {...}, "preference": {...}, "reward": {...}}.

    `rows_in`, `kept`, `dropped` and `faulty` count what came in: responses, prompts for preference, rows of files.
    `rows` counts what was written, by split. Raises UserError when a model to be trained has no rows.
    """
    return context.on_writer(lambda: _write(context))


def _write(context: Context) -> dict:
    final, config = context.folder / "datasets", context.config
    decisions = StageStore.finished(context.folder / "decisions")
    files = [*examples.paths(config.data), *config.evaluate.files.values()]
    compared, said = examples.verdicts(config, context.folder)
    inputs = [decisions.digest, *said, *(file and rows_digest(file) for file in files)]
    settings = fingerprint(dataset_settings(config, context.round))
    own = list(context.run.rules.items())
    name = context.fingerprint("assemble", version=VERSION, inputs=inputs, settings=settings, rules=own)
    if final.exists():
        return read_finished(final, name)
    tally, facts = Tally(), card.Facts(config.reward.own)
    with DatasetFolder(final) as folder:
        folder.make("faulty.jsonl", *(line_file(kind, "train") for kind in CONFIGS))
        schemas = {kind: shapes.schema(kind, config.reward.own) for kind in CONFIGS}
        maker = Maker(config, compared)
        for kind, made in _everything(maker, config, decisions, facts):
            stopping.heed()  # the datasets are one unit: nothing of them is kept
            tally.add(kind, made)
            if isinstance(made, Fault):
                folder.add_line("faulty.jsonl", made.to_row())
            for example in made if isinstance(made, list) else ():
                facts.show(kind, example)
                folder.add_line(line_file(kind, example.split), example.line)
                folder.add_row(table_file(kind, example.split), example.columns, schemas[kind])
        totals = tally.totals()
        for fit in fits(config):
            kind = fit.dataset(config)
            if not totals[kind]["rows"]["train"]:
                told = decisions.totals if kind == "sft" else totals[kind]
                raise _nothing_left(fit.task, kind, context.round, told)
        funnel = _funnel(context.folder, config, decisions.totals.get("waves", 1))
        text = card.card(config, context.round, totals, funnel, facts, settings, context.run.rules)
        folder.add_text("README.md", text)
        folder.add_text("hf/README.md", text)
        folder.commit({"fingerprint": name, "templates": shapes.template_digests(), "totals": totals})
    return totals


def _everything(
    maker: Maker, config: RunConfig, decisions: StageStore, facts: card.Facts
) -> Iterator[tuple[str, list[Example] | str | Fault]]:
    """(kind, its examples, the reason why it has none, or the fault) of all that comes in, a few rows at a time."""
    together: Joined[Decision] = Joined(map(lines.prompt_id, decisions.lines()))
    for row in decisions.read():
        decision = Decision.believed(row)
        facts.see(decision)
        yield "sft", maker.sft(decision)
        yield "reward", maker.reward(decision)
        of_prompt = together.add(decision.prompt_id, decision)
        if of_prompt is not None:
            yield "preference", maker.pairs(of_prompt)
    yield from examples.from_files(maker, config)


def _funnel(folder: Path, config: RunConfig, waves: int) -> dict[str, Any]:
    """Totals of the stages of the round, of each part of it that was decided on, those that are finished."""
    names, parts = part_folders(config), begun_parts(folder, config.revise.passes)
    places = {f"{name}, {part.title}".removesuffix(", "): part.folder(folder) / name
              for part in parts if part.wave < waves for name in names}  # fmt: skip
    places |= {name: folder / name for name in round_folders(config)}
    return {
        name: StageStore.finished(place).totals for name, place in places.items() if (place / "SUCCESS.json").is_file()
    }


def _nothing_left(task: str, kind: str, number: int, totals: dict) -> UserError:
    reasons = ", ".join(f"{reason}: {count}" for reason, count in totals["dropped"].items())
    came, made, limit = _LESSONS[kind]
    return UserError(
        f"nothing is left to train the {'reward model' if task == 'reward' else 'policy'} on",
        where=f"round {number}",
        found=f"{totals['rows_in']} {came}, {totals['kept']} {made}" + (f" ({reasons})" if reasons else ""),
        expected="at least one row",
        way_out=f"{limit}, raise generate.samples, or set {task}.enabled=false",
    )
