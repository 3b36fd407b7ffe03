"""What of a run's folder may go, by `keep.*`: weights that nothing in the run asks for any more, and what was left over.

Rows, datasets, evaluations and what a fit tells of itself always stay. A model is needed until each round that began with it
is evaluated; restart points are, until their fit is done.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nemo_sdg.checkpoints import retired
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import Keep, RunConfig
from nemo_sdg.config.judging import has_judge, judge_backend, judge_model
from nemo_sdg.errors import UserError
from nemo_sdg.store import read_json
from nemo_sdg.store.fits import POLICY, REWARD, goes_on, made_by_a_fit
from nemo_sdg.store.run import leftovers
from nemo_sdg.store.waves import START

_RESULT = "training.json"


@dataclass(frozen=True)
class Removable:
    path: Path
    model: ModelFolder | None
    """Whose weights go while the rest stays; None where the whole path goes."""
    files: int
    num_bytes: int
    why: str

    def remove(self) -> None:
        if self.model is not None:
            digests = {"digest": self.model.digest, "weights_digest": self.model.weights_digest}
            retired.retire(self.path, self.model.contents, digests)
        elif self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


def removable(out: Path, config: RunConfig) -> Iterator[Removable]:
    """What may go of the run in a folder. The caller holds the run's lock, or only looks.

    Nothing that a link leads to: it may be another run's.
    """
    real = out.resolve()
    yield from (one for one in _unneeded(out, config) if one.path.resolve().is_relative_to(real))


def _unneeded(out: Path, config: RunConfig) -> Iterator[Removable]:
    rounds = [out / f"round-{number}" for number in range(config.run.rounds)]
    evaluated = [_evaluated(place) for place in rounds]
    for place, done in zip(rounds, evaluated):
        for entry in sorted(place.iterdir()) if place.is_dir() else ():
            between = made_by_a_fit(entry.name) and entry.name not in (POLICY, REWARD)
            if between and done and not config.keep.intermediate:
                yield from _weights(entry, "its round is evaluated")
    if config.keep.models == "last":
        for kind in (POLICY, REWARD):
            yield from _earlier(out, config, kind, rounds, evaluated)
    for place in [out / START, *rounds]:
        for work in sorted(place.glob(".*.fit")):
            if (place / work.name[1 : -len(".fit")] / _RESULT).is_file():
                yield _whole(work, "its fit is done")
    for path in leftovers(out):
        yield _whole(path, "a process that was killed was writing it")


def tidy(out: Path, config: RunConfig) -> None:
    """Removes the weights that `keep.*` lets go. Called when a round is done, by the process that holds the lock."""
    if config.keep != Keep():
        for one in list(removable(out, config)):
            if one.model is not None:
                one.remove()


def otherwise(config: RunConfig) -> RunConfig:
    """The same run that keeps as little as it can."""
    return replace(config, keep=Keep(models="last", intermediate=False))


def start_is_asked(config: RunConfig, kind: str) -> bool:
    """Whether the model of a kind that the run begins with is needed to the end, whatever is trained later."""
    if kind == REWARD:
        return config.evaluate.win_rate is not None
    judges = has_judge(config) and judge_backend(config) == "local" and judge_model(config) is None
    # The ablation may be asked for more seeds later.
    return judges or (config.evaluate.ablation and config.sft.start_from != "base")


def _evaluated(place: Path) -> bool:
    with contextlib.suppress(UserError):  # a torn one is made again
        return read_json(place / "evaluation.json") is not None
    return False


def _earlier(out: Path, config: RunConfig, kind: str, rounds: list[Path], evaluated: list[bool]) -> Iterator[Removable]:
    """Models of a kind that a later round has trained further, with all rounds since then evaluated."""
    made = [number for number, place in enumerate(rounds) if (place / kind / _RESULT).is_file()]
    for number in made:
        if evaluated[number] and not goes_on(rounds[number], kind):
            yield from _weights(rounds[number] / kind, "it was no better than the one before")
    trained = [number for number in made if not evaluated[number] or goes_on(rounds[number], kind)]
    for number in trained[:-1]:
        if all(evaluated[number : trained[-1] + 1]):
            yield from _weights(rounds[number] / kind, f"round {trained[-1]} has a later one")
    if trained and all(evaluated[: trained[-1] + 1]) and not start_is_asked(config, kind) and (out / START / kind).is_dir():
        yield from _weights(out / START / kind, f"round {trained[-1]} has a later one")


def _weights(folder: Path, why: str) -> Iterator[Removable]:
    """The weights of a model, where there are any left."""
    try:
        model = ModelFolder.open(folder)
        sizes = map(model.contents.files.size, retired.weight_files(model.contents))  # which refuses what leads out
        there = [size for size in sizes if size is not None]
    except UserError:  # begun and not committed, or damaged: `verify` says what is wrong with it
        return
    if there and (folder / _RESULT).is_file():
        yield Removable(folder, model, len(there), sum(there), why)


def _whole(path: Path, why: str) -> Removable:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return Removable(path, None, len(files), sum(file.lstat().st_size for file in files), why)
