"""`fork`: a new run that takes over every stage which a change of settings leaves as it is.

Nothing is generated, scored or read again that need not be. What is taken over are files that nobody writes to any more,
so they are linked, not copied, where the file system can; each stage still holds its own fingerprint against what it
finds.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_sdg.config import PAIRS, TUNING, RunConfig, from_yaml, identity, load
from nemo_sdg.config.evaluating import FILES, GATES
from nemo_sdg.config.starting import begins_with
from nemo_sdg.console import Console
from nemo_sdg.errors import ConfigError, StoreError
from nemo_sdg.store import Run, commit_folder
from nemo_sdg.store.fits import POLICY, REWARD, fits
from nemo_sdg.store.seals import CLEANED
from nemo_sdg.store.verifying import STAGES
from nemo_sdg.store.waves import START, begun_parts, part_folders, round_folders

_MODELS = ("models.dtype", "models.spec")
_HELD_OUT = tuple(f"evaluate.{name}" for name in FILES)
_LIMITS = tuple(
    f"select.{name}" for name in ("minimum", "maximum", "weights", "minimum_scalar", "finished", "checks")
)
_PAIRS = tuple(f"preference.{name}" for name in PAIRS)
_TUNING = tuple(f"preference.{name}" for name in TUNING if name not in ("enabled", "iterations"))
"""Without those that say how many fits there are."""
_JUDGE = ("models.judge", "models.instruct", *_MODELS, "generate.backend", "judge.")
DEPENDS = {
    "prompts": ("data.prompts", "data.prompts_per_round", "generate.group_size"),
    "responses": ("models.instruct", *_MODELS, "generate.", "run.seed"),
    "scored": ("models.reward", *_MODELS, "score.", "reward.outputs"),
    "judged": (*_JUDGE, "select.checks", "data.synthesis.templates"),
    "decisions": ("select.", "revise.", "data.checks"),
    "compared": (*_JUDGE, *_PAIRS, "data.synthesis."),
    "datasets": (
        *_MODELS, "models.instruct", "models.reward", "models.judge", "generate.", "score.", "judge.", "select.",
        "revise.", "data.", *_PAIRS, *_HELD_OUT, "run.", "reward.outputs",
    ),
    "sft": ("models.base", *_MODELS, "sft.", "data.sft", "run.seed", *_HELD_OUT, "data.validation_share"),
    "preference": (
        "models.base", *_MODELS, *_PAIRS, *_TUNING, "run.seed", *_HELD_OUT, "data.validation_share", "data.preference",
    ),
    "start/datasets": ("data.", "reward.outputs", *_HELD_OUT),
    "start/policy": ("models.base", *_MODELS, "sft.", "run.seed", "data.sft", "data.validation_share", *_HELD_OUT),
    "start/reward": (
        "models.base", *_MODELS, "reward.", "run.seed", "data.helpsteer2", "data.labelled", "data.preference",
        "data.validation_share", *_HELD_OUT,
    ),
    "reward": (
        "models.base", *_MODELS, "reward.", "run.seed", *_HELD_OUT, "data.validation_share", "data.labelled",
        "data.helpsteer2",
    ),
    "evaluation.json": (
        "evaluate.", *_MODELS, "models.instruct", "models.reward", "generate.backend", "score.backend",
        "generate.endpoint.", "score.endpoint.", "reward.outputs", "run.seed",
    ),
    "ablation.json": (
        "models.base", *_MODELS, "sft.", "data.sft", "data.validation_share", "run.seed", *_HELD_OUT, "evaluate.max_tokens",
    ),
}  # fmt: skip
"""What a stage leaves in a round, or by what fit a model was made, and the settings that it depends on beside what it
reads. A model reads the rows of the datasets and not their card, which tells more settings."""
MADE = ("data.synthesis.",)
"""What the prompts of a round with a brief depend on besides."""
REVISION = (*_LIMITS, "revise.", "data.checks")
"""What the prompts of a revision depend on."""


@dataclass(frozen=True)
class Step:
    """One folder or file of a round."""

    folder: str
    """Of the round, or of what the run began with."""
    name: str
    """Below that folder."""
    source: str
    """Where the old run has it: a model is called otherwise where another step follows on it."""
    reused: bool
    rows: int | None
    """As the old run has them; None where it does not say."""
    tokens: int | None


@dataclass(frozen=True)
class _Model:
    source: str
    """Its folder in the old run."""
    another: bool
    """Whether it has to be trained again."""


def fork(run: Path, new: Path, overrides: list[str]) -> int:
    """Makes the new run, says what it takes over, and returns the exit status."""
    if not (run / "run.yaml").is_file():
        raise StoreError("the folder is no run", where=run, found="no run.yaml", way_out="give the --out of a run")
    if run.resolve() == new.resolve():
        raise ConfigError("a run cannot be forked into itself", where=new, way_out="name a new folder")
    before, config = from_yaml(run / "run.yaml"), load(str(run / "run.yaml"), overrides)
    steps = list(plan(run, before, config))
    console = Console()
    rows = [(s.folder, s.name, "reused" if s.reused else "to do", _count(s.rows), _count(s.tokens)) for s in steps]
    changed = ", ".join(f"{key} {old} -> {now}" for key, old, now in changes(before, config)) or "nothing"
    console.say(f"fork of {run}: {changed}")
    console.table("what the new run begins with", ["where", "what", "", "rows", "tokens"], rows)
    with Run.open(new, config, writer=True) as opened:
        with console.progress("taking over", sum(step.reused for step in steps)) as bar:
            for step in steps:
                if step.reused:
                    _take(run / step.folder / step.source, opened.out / step.folder / step.name)
                    bar.advance()
    console.say(f"next: nemo-sdg run {new}/run.yaml --out {new}")
    return 0


def changes(before: RunConfig, after: RunConfig) -> list[tuple[str, Any, Any]]:
    """(key, old, new) of the settings that decide what rows are."""
    old, new = identity(before), identity(after)
    return [(k, old.get(k), new.get(k)) for k in {**old, **new} if old.get(k, "unset") != new.get(k, "unset")]


def plan(run: Path, before: RunConfig, after: RunConfig) -> Iterator[Step]:
    """Everything that the old run left, in order, and whether it is still what the new settings give."""
    changed = [key for key, _, _ in changes(before, after)]

    def touched(keys: tuple[str, ...]) -> bool:
        return any(key == name or key.startswith(name if name.endswith(".") else f"{name}.")
                   for key in changed for name in keys)  # fmt: skip

    made = any(config.data.synthesis.brief is not None for config in (before, after))
    earlier = False
    """Whether a model that was trained before the round is another now."""
    for name in ("datasets", *begins_with(after)):
        redone = touched(DEPENDS[f"{START}/{name}"]) or (run / START / name / CLEANED).is_file()
        earlier = earlier or (redone and name != "datasets")
        if (run / START / name).is_dir() and begins_with(after):
            yield _step(run / START, name, not redone)
    for number in range(min(before.run.rounds, after.run.rounds)):
        folder = run / f"round-{number}"
        waves_changed = False
        for part in begun_parts(folder, before.revise.passes):
            part_changed = part.revision > 0 and (waves_changed or touched(REVISION))
            for name in part_folders(after):
                asks = name != "prompts" or after.data.synthesis.brief is not None
                part_changed = part_changed or touched(DEPENDS[name]) or (asks and earlier)
                part_changed = part_changed or (made and touched(MADE))
                part_changed = part_changed or (asks and touched(DEPENDS["responses"]))
                place = part.folder(Path()) / name
                if (folder / place).is_dir():
                    yield _step(folder, str(place), not part_changed)
            waves_changed = waves_changed or part_changed
        changed_rows = waves_changed or earlier or touched(DEPENDS["decisions"])
        stale = {"decisions": changed_rows}
        stale |= {name: changed_rows or touched(DEPENDS[name]) for name in round_folders(after)[1:]}
        stale["datasets"] = changed_rows or touched(DEPENDS["datasets"])
        models, earlier = _models(folder, before, after, changed_rows, touched)
        stale |= {name: model.another for name, model in models.items()}
        measured = earlier or touched(DEPENDS["evaluation.json"])
        stale["evaluation.json"] = measured
        stale["ablation.json"] = changed_rows or touched(DEPENDS["ablation.json"])
        # Other figures may let another model go on.
        earlier = earlier or (measured and any(getattr(c.evaluate, key) for c in (before, after) for key in GATES))
        for name, redone in stale.items():
            source = models[name].source if name in models else name
            if (folder / source).exists():
                yield _step(folder, name, not redone, source)


def _models(
    folder: Path, before: RunConfig, after: RunConfig, changed_rows: bool, touched: Callable[[tuple[str, ...]], bool]
) -> tuple[dict[str, _Model], bool]:
    """(by folder the models that a round of the new run trains, whether a model that it hands on is another now)."""
    old = {(fit.task, fit.iteration): fit.folder for fit in fits(before)}
    made: dict[str, _Model] = {}
    for fit in fits(after):
        source = old.get((fit.task, fit.iteration))
        another = source is None or changed_rows or touched(DEPENDS[fit.task])
        # One whose weights were deleted is of no use to a run that goes on otherwise.
        another = another or (folder / str(source) / CLEANED).is_file()
        if fit.folder != REWARD:  # it goes on from the step before
            another = another or any(model.another for model in made.values())
        made[fit.folder] = _Model(source or fit.folder, another)

    def handed_on(kind: str) -> tuple[str | None, bool]:
        model = made.get(kind)
        return (None, False) if model is None else (model.source, model.another)

    same = [(kind if kind in old.values() else None, False) == handed_on(kind) for kind in (POLICY, REWARD)]
    return made, not all(same)


def _step(folder: Path, name: str, reused: bool, source: str | None = None) -> Step:
    success = folder / name / "SUCCESS.json"
    finished = not name.endswith(STAGES) or success.is_file()
    totals = json.loads(success.read_bytes())["totals"] if success.is_file() else {}
    return Step(folder.name, name, source or name, reused and finished, totals.get("kept"), totals.get("tokens"))


def _take(source: Path, target: Path) -> None:
    """The same files under a new name, whole or not at all."""
    if target.exists():
        return
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(source, target)
        return
    temporary = target.with_name(f".{target.name}.tmp-fork")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, copy_function=_link, symlinks=True)
    commit_folder(temporary, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
