"""`verify RUN --row ID`: from a row of a dataset back to what made it, and made again from that.

A generated row goes back over decision, scores and response to its prompt, a row that people judged to its file and
place. No model is asked and nothing is written.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_sdg.config import RunConfig, from_yaml
from nemo_sdg.console import Console
from nemo_sdg.errors import StoreError, UserError
from nemo_sdg.quality.personal import redacted
from nemo_sdg.records import Decision, Fault, Labelled, Pair, Scored, each_row, labelled
from nemo_sdg.records.broken import BROKEN, broken_checks
from nemo_sdg.records.sources import parquet_rows
from nemo_sdg.session import rank
from nemo_sdg.stages import examples, shapes
from nemo_sdg.stages.examples import CONFIGS, SPLITS, Example, Maker, line_file, table_file
from nemo_sdg.store import StageStore
from nemo_sdg.store.datasets import read_summary
from nemo_sdg.store.files import dump
from nemo_sdg.store.waves import Part, part_folders

_FILE_ROW = re.compile(r"(helpsteer2|labelled/\d+|preference/\d+):(\d+)(~\d+)?")


@dataclass
class Origin:
    """What a row's sources say of it, and give now."""

    told: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    made: list[Example] = field(default_factory=list)


def verify_row(folder: Path, name: str) -> int:
    """Tells where each row of this id comes from: 0 if each is what its sources give, else 1 and where it differs.

    Raises StoreError when the folder is no run or a part of it was altered, UserError when no dataset has the row.
    """
    if rank() != 0:
        return 0
    if not (folder / "run.yaml").is_file():
        raise StoreError("the folder is no run", where=folder, found="no run.yaml", way_out="give a run's --out")
    console, config = Console(), from_yaml(folder / "run.yaml")
    rounds = [folder / f"round-{number}" / "datasets" for number in range(config.run.rounds)]
    seen, problems = 0, []
    for datasets in rounds:
        for kind in CONFIGS:
            for split, number, line in _found(datasets, kind, name):
                seen += 1
                place = f"{datasets.parent.name}/datasets/{line_file(kind, split)}:{number}"
                origin = _origin(config, datasets.parent, kind, name)
                wrong = origin.problems + _compared(datasets, kind, split, line, origin.made)
                console.say(f"{name} is in {place}")
                for label, text in [*origin.told, ("rebuilt", "differs" if wrong else f"the same {len(line)} bytes")]:
                    console.say(f"  {label:<9} {text}")
                problems += [f"{place}: {problem}" for problem in wrong]
    if not seen:
        raise UserError(
            "no dataset of the run has this row", where=folder, found=repr(name),
            expected='the "id" of a line in round-N/datasets/*.jsonl',
        )  # fmt: skip
    for problem in problems:
        console.fail(f"nemo-sdg: {problem}")
    return 1 if problems else 0


def _found(datasets: Path, kind: str, name: str) -> Iterator[tuple[str, int, bytes]]:
    """(split, line from 1, the line's bytes) wherever the id stands among the rows of a kind."""
    for split in SPLITS:
        file = datasets / line_file(kind, split)
        for number, line in enumerate(file.read_bytes().split(b"\n") if file.is_file() else (), start=1):
            try:
                if line and json.loads(line)["id"] == name:
                    yield split, number, line
            except (ValueError, KeyError, TypeError):
                raise StoreError("the line was torn or altered", where=f"{file}:{number}") from None


def _origin(config: RunConfig, folder: Path, kind: str, name: str) -> Origin:
    place = _FILE_ROW.fullmatch(name)
    origin = _from_file(config, place[1], int(place[2])) if place else _from_responses(config, folder, kind, name)
    origin.made = [example for example in origin.made if example.line["id"] == name]
    formats = shapes.template_digests()
    origin.told.append(("formats", _listed(formats)))
    (then,) = read_summary(folder / "datasets", "templates")
    origin.problems += _differences("prompt formats", then, formats)
    return origin


def _from_file(config: RunConfig, source: str, number: int) -> Origin:
    """A row that people judged, from the file that the run's settings name."""
    maker, kind = Maker(config), Pair if source.startswith("preference/") else labelled(config.reward.own)
    sources = [*examples.labelled_sources(config.data), *examples.preference_sources(config.data)]
    named = [(path, weight) for name, path, weight in sources if name == source]
    if not named:
        return Origin(problems=[f"the settings in run.yaml name no file for {source}"])
    (path, weight), origin = named[0], Origin()
    origin.told.append(("source", f"{path}, row {number}, weight {weight:g}"))
    row = next((row for at, row in each_row(path, kind) if at == number), None)
    if row is None or isinstance(row, Fault):
        origin.problems.append(f"{path}: row {number} is " + ("not there" if row is None else f"faulty: {row.reason}"))
        return origin
    judged = row.labels if isinstance(row, Labelled) else {"chosen": row.score_chosen, "rejected": row.score_rejected}
    origin.told.append(("people", _listed(judged)))
    made = (maker.preferred if kind is Pair else maker.labelled)(row, f"{source}:{number}", weight)
    if isinstance(made, str):
        origin.problems.append(f"{path}: row {number} is left out: {made}")
    else:
        origin.made = made
    return origin


def _from_responses(config: RunConfig, folder: Path, kind: str, name: str) -> Origin:
    """A row that the run generated."""
    origin, decisions = Origin(), folder / "decisions"
    # Two answers to a prompt, or an answer and its revision, do not lie beside each other.
    prompts = {row["prompt_id"] for row in _rows(decisions) if name == row["id"] or name.startswith(f"{row['id']}>")}
    together: dict[str, list[dict]] = {prompt: [] for prompt in sorted(prompts)}
    for row in _rows(decisions):
        if row["prompt_id"] in together:
            together[row["prompt_id"]].append(row)
    for of_prompt in together.values():
        involved = _involved(of_prompt, name)
        if not involved:
            continue
        for row in involved:
            asked, problems = _chain(config, folder, row)
            origin.told += _told(row, asked, config)
            origin.problems += problems
        decided = [Decision.from_row(row, f"row {row['id']}") for row in of_prompt]
        maker = Maker(config, examples.verdicts(config, folder)[0])
        origin.made += examples.generated(maker, kind, decided)
        return origin
    origin.problems.append("no decision of the round is of this id")
    return origin


def _involved(rows: Sequence[dict], name: str) -> list[dict]:
    """The response of this id, or the two of this pair; `rows` are those of one prompt."""
    one = [row for row in rows if row["id"] == name]
    two = [[a, b] for a in rows if name.startswith(a["id"]) for b in rows if f"{a['id']}>{b['id']}" == name]
    return one or (two[0] if two else [])


def _chain(config: RunConfig, folder: Path, decision: dict) -> tuple[dict, list[str]]:
    """(the prompt's row, where stages say something else of this response). A stage adds columns and changes none."""
    part = Part.of(decision["provenance"])
    place, turns, name = part.folder(folder), len(decision["messages"]), decision["id"]
    prompt = f"{decision['provenance']['revises']}/r{part.revision}" if part.revision else decision["prompt_id"]
    problems, later, stages = [], decision, part_folders(config)
    for stage in reversed(stages):
        wanted = prompt if stage == "prompts" else name
        earlier = next((row for row in _rows(place / stage) if row["id"] == wanted), None)
        if earlier is None:
            return {}, [*problems, f"{stage}: there is no row {wanted}"]
        # A revision is asked for in more turns than it answers.
        expected = {"messages": earlier["messages"][:turns]} if stage == "prompts" else earlier
        if stage == stages[-1] and config.select.pii == "redact":  # selection has rewritten it, and would again
            expected = redacted(Scored.from_row(earlier, name), config.select).to_row()
        found = {key: later.get(key) for key in expected}
        if "provenance" in expected:  # scoring adds who scored
            found["provenance"] = {key: later["provenance"].get(key) for key in expected["provenance"]}
        problems += _differences(stage, found, expected)
        later = earlier
    return later, problems


def _told(row: dict, asked: dict, config: RunConfig) -> list[tuple[str, str]]:
    columns = {key: value for key, value in asked.items() if key not in ("id", "messages")}
    rewritten = [("redacted", _listed(row.get("redacted") or {}) + ": select.pii has rewritten the response")]
    broken = "; ".join(broken_checks(row)) or "none"
    outcome = "kept" if row["kept"] else row["reason"]
    return [
        ("response", row["id"]),
        ("prompt", f"{row['prompt_id']} {_listed(columns)}".rstrip()),
        ("made by", _listed(row["provenance"])),
        ("scores", _listed(row["scores"])),
        *([("broken", broken)] if BROKEN in row else []),
        ("rule", f"{outcome}, scalar {row['scalar']}, weights {_listed(config.select.weights)}"),
        *(rewritten if row.get("redacted") else []),
    ]


def _compared(datasets: Path, kind: str, split: str, line: bytes, made: Sequence[Example]) -> list[str]:
    """How a line, and its row in the table, differ from what the sources give now."""
    if len(made) != 1:
        return [f"its sources give {len(made)} rows of this id, expected 1"]
    example, name = made[0], table_file(kind, split)
    problems = _differences("split", split, example.split)
    if dump(example.line) != line + b"\n":
        problems += _differences("line", json.loads(line), example.line) or ["line: other bytes for the same values"]
    table = datasets / name
    rows = [row for row in parquet_rows(table) if row.get("id") == example.line["id"]] if table.is_file() else []
    if len(rows) != 1:
        return [*problems, f"{name}: found {len(rows)} times"]
    return problems + _differences(name, rows[0], {k: v for k, v in example.columns.items() if v is not None})


def _rows(folder: Path) -> Iterator[dict]:
    return StageStore.finished(folder).read()


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _differences(where: str, found: Any, expected: Any) -> list[str]:
    """`where: found ..., expected ...` for each place in which two values differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = dict.fromkeys([*expected, *found])
        return [line for key in keys for line in _differences(f"{where}.{key}", found.get(key), expected.get(key))]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        both = enumerate(zip(found, expected))
        return [line for index, pair in both for line in _differences(f"{where}[{index}]", *pair)]
    if found == expected:
        return []
    start = max(0, len(os.path.commonprefix([str(found), str(expected)])) - 10)
    return [f"{where}: found {str(found)[start : start + 60]!r}, expected {str(expected)[start : start + 60]!r}"]
