"""Before the first round of a run that has only Base: a policy and a reward model of its own, from what people wrote.

Writes `start/datasets/`, `start/policy/` and `start/reward/`, each whole or not at all; of the models those that the
settings do not name. The first round then generates and scores with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_sdg.config import fingerprint, identity
from nemo_sdg.config.starting import GROUPS, begins_with
from nemo_sdg.errors import UserError
from nemo_sdg.parallel import stopping
from nemo_sdg.stages import examples, fitting, shapes
from nemo_sdg.stages.context import Context
from nemo_sdg.stages.examples import CONFIGS, Maker, line_file
from nemo_sdg.stages.tally import Tally
from nemo_sdg.records import Fault
from nemo_sdg.store import DatasetFolder, rows_digest
from nemo_sdg.store.datasets import read_finished
from nemo_sdg.store.fits import Fit
from nemo_sdg.store.waves import START

VERSION = 1
"""Raised when the code changes what the same settings give."""


def run(context: Context) -> dict[str, Any]:
    """Trains what is missing and not done yet; {} where the settings name both models.

    Returns:
        {"datasets": totals by kind as `assemble` has them, and by model {"steps", "rows", "rows_set_aside", "tokens",
        "first_loss", "last_loss"}}.
    """
    needed, folder = begins_with(context.config), context.run.out / START
    if not needed:
        return {}
    totals: dict[str, Any] = {"datasets": context.on_writer(lambda: _write(context, folder / "datasets"))}
    for kind in needed:
        totals[kind] = _train(context, kind, folder)
    return totals


def _write(context: Context, final: Path) -> dict[str, Any]:
    config = context.config
    files = [*examples.paths(config.data), *config.evaluate.files.values()]
    settings = {key: value for key, value in identity(config).items() if key.startswith(("data.", "reward.outputs"))}
    inputs = [file and rows_digest(file) for file in files]
    name = context.fingerprint("start", version=VERSION, inputs=inputs, settings=fingerprint(settings))
    if final.exists():
        return read_finished(final, name)
    tally = Tally()
    with DatasetFolder(final) as folder:
        folder.make("faulty.jsonl", *(line_file(kind, "train") for kind in CONFIGS))
        for kind, made in examples.from_files(Maker(config), config):
            stopping.heed()
            tally.add(kind, made)
            if isinstance(made, Fault):
                folder.add_line("faulty.jsonl", made.to_row())
            for example in made if isinstance(made, list) else ():
                folder.add_line(line_file(kind, example.split), example.line)
        totals = tally.totals()
        for kind in begins_with(config):
            rows = _rows(context, kind)
            if not totals[rows]["rows"]["train"]:
                raise _nothing(kind, totals[rows])
        folder.commit({"fingerprint": name, "templates": shapes.template_digests(), "totals": totals})
    return totals


def _rows(context: Context, kind: str) -> str:
    """The dataset that a model learns from."""
    return "sft" if kind == "policy" else context.config.reward.rows


def _nothing(kind: str, totals: dict[str, Any]) -> UserError:
    reasons = ", ".join(f"{reason}: {count}" for reason, count in {**totals["dropped"], **totals["faulty"]}.items())
    return UserError(
        f"nothing is left to train the first {'policy' if kind == 'policy' else 'reward model'} on", where=START,
        found=f"{totals['rows_in']} rows in, {totals['kept']} kept" + (f" ({reasons})" if reasons else ""),
        expected="at least one row", way_out="look at the files that data.sft, data.helpsteer2 and data.labelled name",
    )  # fmt: skip


def _train(context: Context, kind: str, folder: Path) -> dict[str, Any]:
    return fitting.train(
        context,
        Fit(kind, GROUPS[kind]),
        title=f"train first {kind}",
        start=context.config.models.base,
        datasets=folder / "datasets",
        out=folder / kind,
        seed=context.config.run.seed,
    )
