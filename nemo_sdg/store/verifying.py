"""Is a run as it was written? Every file in it is read once and held against the digest that it, its name or the list
beside it holds. Logs and the lock are notes that no stage reads; they alone have none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from nemo_sdg.config import RunConfig, from_yaml
from nemo_sdg.config.starting import begins_with
from nemo_sdg.console import Console, size_text
from nemo_sdg.errors import UserError
from nemo_sdg.store.fits import fits, made_by_a_fit
from nemo_sdg.store.run import RUN
from nemo_sdg.store.seals import SUMS, check_sums, check_text, read_json
from nemo_sdg.store.stage import StageStore
from nemo_sdg.store.waves import FOLDER, START, part_folders, round_folders, wave_parts

STAGES = ("prompts", "responses", "scored", "judged", "decisions", "compared")
"""Folders that a run fills row group by row group."""
_NOTES = ("logs", "run.lock")
_PAGE = "report.html"


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, or what is left of one."""
    return (folder / RUN).exists() or any(folder.glob("round-*"))


def verify_run(folder: Path, console: Console) -> list[str]:
    """What is wrong with a run, one sentence each; what it is goes to the console.

    A run that is not finished is not wrong, but it is not whole either: what is missing is one of the sentences.
    """
    if not (folder / RUN).is_file():
        return [f"{folder / RUN}: the file is not there; put a copy back"]
    problems = _told(lambda: check_text(folder / RUN, "put an unaltered copy back"))
    if problems:
        return problems  # what the run should hold stands in there
    config = from_yaml(folder / RUN)
    if (folder / _PAGE).exists():
        way_out = f"write it anew with `nemo-sdg report {folder}`"
        problems += _told(lambda: check_text(folder / _PAGE, way_out, "<!-- {} -->"))
    rounds = [folder / f"round-{number}" for number in range(config.run.rounds)]
    began = begins_with(config)
    entries = [folder / START / name for name in (["datasets", *began] if began else [])]
    entries += [place / name for place in rounds for name in _expected(config, place)]
    missing = [entry for entry in entries if not entry.exists()]
    if missing:
        more = f", nor are {len(missing) - 1} others" if len(missing) > 1 else ""
        way_out = f"`nemo-sdg run {folder / RUN} --out {folder}` makes what is missing"
        first = missing[0].relative_to(folder)
        problems.append(f"{folder}: the run is not finished, {first} is not there{more}; {way_out}")
    known = {RUN, _PAGE, *_NOTES, *([START] if began else []), *(place.name for place in rounds)}
    strange = [path for path in sorted(folder.iterdir()) if path.name not in known]
    for place in [folder / START] * bool(began) + rounds:
        for entry in sorted(place.iterdir()) if place.is_dir() else ():
            found = check_entry(entry)
            problems += found or []
            strange += [entry] if found is None else []
    if strange:
        names = ", ".join(str(path.relative_to(folder)) for path in strange)
        console.say(f"not of this run, and not looked at: {names}")
    if not problems:
        files = [file for file in folder.rglob("*") if file.is_file()]
        size = size_text(sum(file.stat().st_size for file in files))
        console.say(
            f"{folder}: run {config.run.name}, {config.run.rounds} rounds, all finished, {len(files):,} files, {size}: "
            "every byte is as it was written (logs/ and run.lock apart, which no stage reads)"
        )
    return problems


def check_entry(entry: Path) -> list[str] | None:
    """What is wrong with one thing in the folder of a round; None for what a run has not put there."""
    if entry.name.startswith("."):
        return []  # begun and not named yet: the next start goes on with it or takes it away
    if FOLDER.fullmatch(entry.name):
        return [problem for inner in sorted(entry.iterdir()) for problem in check_entry(inner) or []]
    if entry.name in STAGES or (entry / "SUCCESS.json").exists():
        return _stage(entry)
    if entry.is_dir():
        ours = entry.name == "datasets" or made_by_a_fit(entry.name) or (entry / SUMS).exists()
        return check_sums(entry) if ours else None
    return _told(lambda: read_json(entry)) if entry.suffix == ".json" else None


def _expected(config: RunConfig, place: Path) -> list[str]:
    """What a finished round holds; how many waves it had, its decisions say."""
    waves = 1
    if (place / "decisions" / "SUCCESS.json").exists():
        with contextlib.suppress(UserError):  # a file that was altered is told of where it is looked at
            waves = StageStore.finished(place / "decisions").totals.get("waves", 1)
    parts = [part for wave in range(waves) for part in wave_parts(wave, config.revise.passes)]
    made = [str(part.folder(Path()) / name) for part in parts for name in part_folders(config)]
    trained = [fit.folder for fit in fits(config)]
    told = ["evaluation.json", *(["ablation.json"] if config.evaluate.ablation and place.name == "round-0" else [])]
    return [*made, *round_folders(config), "datasets", *trained, *told]


def _stage(folder: Path) -> list[str]:
    """All files of a stage, also those behind the first one that is wrong, and the answers that it was made from."""
    problems = _told(lambda: StageStore.finished(folder))
    if not problems:
        problems = list(StageStore.finished(folder).problems())
    return problems + [problem for inner in sorted(folder.glob("answers*")) for problem in _stage(inner)]


def _told(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except UserError as error:
        return [str(error)]
    return []
