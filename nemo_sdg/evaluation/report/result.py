"""What the folder of a run says: rows and reasons per stage, evaluations, losses, places. It may be at work still."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemo_sdg.config import RunConfig, fingerprint, from_yaml, identity
from nemo_sdg.config.starting import begins_with
from nemo_sdg.errors import StoreError
from nemo_sdg.evaluation import ablation
from nemo_sdg.records import read_objects
from nemo_sdg.store.datasets import read_summary
from nemo_sdg.store.fits import accepted, fits
from nemo_sdg.store.waves import START, begun_parts, part_folders, round_folders

STAGES = {
    "prompts": "prompts", "responses": "generate", "scored": "score", "judged": "judge", "decisions": "select",
    "compared": "compare",
}  # fmt: skip
"""Folder of a round -> the stage that fills it."""
BEFORE = -1
"""Stands for a round where a model was trained before the first one."""


@dataclass(frozen=True)
class StageRows:
    """Rows of one finished stage of one round; `dropped` and `faulty` are counts by reason."""

    round: int
    stage: str
    rows_in: int
    kept: int
    dropped: dict[str, int]
    faulty: dict[str, int]


@dataclass
class Result:
    """A run as its folder tells it."""

    folder: Path
    config: RunConfig
    rows: list[StageRows] = field(default_factory=list)
    evaluations: dict[int, dict[str, Any]] = field(default_factory=dict)
    """evaluation.json by round."""
    ablation: dict[str, Any] | None = None
    """What `stages.ablate` has found in round 0."""
    revised: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """By round what each pass of revision won; see `quality.revision.Gain`."""
    losses: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    """Training losses by (round, the fit's folder); the round is BEFORE for what the run began with."""
    validations: dict[tuple[int, str], list[dict[str, Any]]] = field(default_factory=dict)
    """What validation told while it trained, by the same keys; only of fits that were validated."""
    written: dict[str, Any] = field(default_factory=dict)
    """run.yaml as it is: versions, digests of inputs."""

    @property
    def fingerprint(self) -> str:
        return fingerprint(identity(self.config))

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: every round is evaluated, and the ablation told where one was asked for."""
        return self.config.run.rounds - 1 in self.evaluations and not self.lacks_ablation

    @property
    def lacks_ablation(self) -> bool:
        return self.config.evaluate.ablation and self.ablation is None

    def so_far(self, word: str = "") -> str:
        """For example `1 of 2 rounds`, with a word behind it."""
        said = f"{len(self.evaluations)} of {self.config.run.rounds} rounds {word}".rstrip()
        return said + (", without the ablation" if self.lacks_ablation and 0 in self.evaluations else "")


def read(folder: Path) -> Result:
    """Raises StoreError if the folder is no run, or one of its files cannot be read."""
    folder = Path(folder)
    if not (folder / "run.yaml").is_file():
        found = "no run.yaml" if folder.is_dir() else "no such folder"
        raise StoreError(
            "the folder is no run", where=folder, found=found, way_out="give the --out of a `nemo-sdg run`"
        )
    result = Result(folder, from_yaml(folder / "run.yaml"))
    result.written = yaml.safe_load((folder / "run.yaml").read_text())
    for name in begins_with(result.config):
        _fitted(result, BEFORE, name, folder / START / name)
    for number in range(result.config.run.rounds):
        place = folder / f"round-{number}"
        for stage, made in stage_folders(place, result.config):
            totals = (_json(made / "SUCCESS.json") or {}).get("totals")
            if totals is not None:
                dropped, faulty = _reasons(totals.get("dropped")), _reasons(totals.get("faulty"), made)
                result.rows.append(StageRows(number, stage, totals["rows_in"], totals["kept"], dropped, faulty))
                if totals.get("revised"):
                    result.revised[number] = totals["revised"]
        (told,) = read_summary(place / "datasets", "totals") if (place / "datasets").is_dir() else ({},)
        for name, totals in told.items():
            dropped, faulty = _reasons(totals.get("dropped")), _reasons(totals.get("faulty"), place / "datasets")
            result.rows.append(
                StageRows(number, f"assemble {name}", totals["rows_in"], totals["kept"], dropped, faulty)
            )
        result.ablation = result.ablation or _json(place / ablation.FILE)
        evaluation = _json(place / "evaluation.json")
        if evaluation is not None:
            result.evaluations[number] = evaluation
        for fit in fits(result.config):
            _fitted(result, number, fit.folder, place / fit.folder)
    return result


def _fitted(result: Result, number: int, name: str, folder: Path) -> None:
    training = _json(folder / "training.json")
    if training is None:
        return
    result.losses[number, name] = training["losses"]
    if training.get("validation"):
        result.validations[number, name] = training["validation"]
    if number != BEFORE:
        aside = _reasons(training["rows_set_aside"])
        rows_in = training["rows"] + sum(aside.values())
        result.rows.append(StageRows(number, f"train {name}", rows_in, training["rows"], {}, aside))


def stage_folders(place: Path, config: RunConfig) -> Iterator[tuple[str, Path]]:
    """(stage and part, folder) of a round in the order in which they are filled."""
    for part in begun_parts(place, config.revise.passes):
        for name in part_folders(config):
            stage = "revise" if part.revision and name == "prompts" else STAGES[name]
            yield f"{stage}, {part.title}" if part.title else stage, part.folder(place) / name
    for name in round_folders(config):
        yield STAGES[name], place / name


def places(result: Result) -> list[tuple[str, str]]:
    """(what, path inside the run) for what lies there now; the newest model of each kind."""
    found = []
    for what, name in (("policy", "policy"), ("reward model", "reward"), ("training data", "datasets")):
        # A later round may have made a model that was no better than the one before.
        rounds = [n for n in range(result.config.run.rounds) if accepted(result.evaluations.get(n), name)]
        there = [path for n in rounds if (result.folder / (path := f"round-{n}/{name}")).is_dir()]
        if there:
            found.append((what, there[-1]))
    for what, path in (("settings", "run.yaml"), ("logs", "logs"), ("page", "report.html")):
        if (result.folder / path).exists():
            found.append((what, path))
    return found


def reasons(rows: StageRows) -> str:
    """For example `helpfulness below minimum 212, duplicate 3`, the most frequent first."""
    counts = {**rows.dropped, **rows.faulty}
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count}" for reason, count in ordered if count)


def _reasons(value: object, folder: Path | None = None) -> dict[str, int]:
    """Counts by reason; where a stage counted without them, the rows that it set aside in its folder tell."""
    if isinstance(value, Mapping):
        return {str(reason): int(count) for reason, count in value.items()}
    if not value:
        return {}
    files = sorted(folder.glob("faulty*.jsonl")) if folder else []
    rows = [row for file in files for _, row in read_objects(file) if isinstance(row, dict)]
    counts = Counter(re.split(r", found |: ", str(row.get("reason")))[0] for row in rows)
    return dict(counts) if sum(counts.values()) == value else {"no reason kept": int(value)}


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise StoreError(
            "the file cannot be read", where=path, found=str(error)[:80], way_out="delete it and run again"
        ) from None
