"""A run's folder: one config, one writer, everything inside by relative path."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import shutil
import time
from pathlib import Path
from typing import Any, Mapping

import yaml

from nemo_sdg import resources
from nemo_sdg.config import RunConfig, fingerprint, flatten, from_yaml, identity
from nemo_sdg.config.briefs import brief_files
from nemo_sdg.config.endpoints import other_server
from nemo_sdg.config.evaluating import FILES
from nemo_sdg.config.judging import has_judge
from nemo_sdg.errors import StoreError
from nemo_sdg.store import disk
from nemo_sdg.store.files import append, commit_file, digest, make_folder, refusing
from nemo_sdg.store.inputs import rows_digest, texts_digest
from nemo_sdg.store.lock import release, take
from nemo_sdg.store.seals import check_text, commit_text

_INPUTS = ("models.base", "models.instruct", "models.reward", "models.judge", "data.prompts", "data.helpsteer2")
_INPUTS += (*(f"evaluate.{name}" for name in FILES), "select.likeness", "data.synthesis.brief")
_WEIGHED = ("data.sft", "data.labelled", "data.preference")
"""Settings whose keys are files."""
_VERSIONED = ("nemo-sdg", "torch", "megatron-core", "nemo-toolkit")
_MAY_STAND = {"run.lock", "logs"}
"""What a folder may hold before it is a run: an earlier start may have been killed between these and run.yaml."""
_LEFTOVERS = (".*.tmp-*", "round-*/**/.*.tmp-*")
"""Files and folders that a killed process was writing."""
RUN = "run.yaml"
STOPPED = "logs/stopped.json"
"""There is such a file while the last start was told to stop: for scripts, to which a launcher may hide the exit status."""


class Run:
    """An open run. Use `Run.open`; `close` (or leaving the `with` block) releases the lock."""

    def __init__(
        self, out: Path, config: RunConfig, writer: bool, lock: int | None, rules: Mapping[str, str] | None = None
    ) -> None:
        self.out, self.config, self.writer, self.rules = out, config, writer, dict(rules or {})
        own = {"rules": list(self.rules.items())} if self.rules else {}
        self.fingerprint = fingerprint({**identity(config), **own})
        self._lock = lock

    @classmethod
    def open(cls, out: str | Path, config: RunConfig, *, writer: bool, rules: Mapping[str, str] | None = None) -> Run:
        """The run in folder `out`, made if need be.

        The writer (one process, rank 0) holds `run.lock` and writes `run.yaml`; the others only read.
        `rules` are the digests of the rules that the recipe brings, by name.
        Raises StoreError when the folder is another config's, no run at all, or in use.
        """
        out = Path(out)
        if not writer:
            return cls(out, config, False, None, rules)
        if out.exists() and not out.is_dir():
            raise StoreError("not a folder", where=out, way_out="choose another --out")
        if out.is_dir() and not (out / RUN).exists():
            names = sorted(entry.name for entry in out.iterdir())
            strange = [name for name in names if name not in _MAY_STAND and not name.startswith(".run.yaml.tmp-")]
            if strange:
                raise StoreError(
                    "the folder is full and is no run",
                    where=out,
                    found=", ".join(strange[:3]) + (" ..." if len(strange) > 3 else ""),
                    expected=RUN,
                    way_out="choose an empty or a new folder for --out",
                )
        with refusing(out):
            make_folder(out)
            lock = take(out / "run.lock", "the run", "wait for it, stop it, or choose another --out")
        run = cls(out, config, True, lock, rules)
        try:
            run._describe(_saved(out, config, run.rules))
            run._clear()
        except BaseException:
            run.close()
            raise
        return run

    def round(self, number: int) -> Path:
        """The folder of a round, counted from 0."""
        return self.out / f"round-{number}"

    def events(self, name: str, **fields: Any) -> None:
        """Appends one line to logs/events.jsonl, for machines and the report; no stage reads it back."""
        if not self.writer:
            return
        line = json.dumps({"time": round(time.time(), 3), "event": name, **fields}, default=str) + "\n"
        append(self.out / "logs" / "events.jsonl", line.encode())

    def stopped(self, why: str) -> None:
        """Leaves the note that this run was told to stop and the same command goes on; the next start takes it away."""
        commit_file(self.out / STOPPED, (json.dumps({"time": round(time.time(), 3), "why": why}) + "\n").encode())

    def close(self) -> None:
        """Lets the next process write here."""
        if self._lock is not None:
            release(self._lock)
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _describe(self, saved: RunConfig | None) -> None:
        """run.yaml: the config, what it is called, what made it and what its inputs were."""
        inputs = {key: _digest(path) for key, path in _inputs(self.config).items()}
        file = self.out / RUN
        if saved is not None:
            began = yaml.safe_load(file.read_text()).get("inputs", {})
            for key, now in inputs.items():
                before = began.get(key)
                if before is not None and before != now:
                    raise StoreError(
                        f"{key} is not what this run began with",
                        where=_inputs(self.config)[key],
                        found=now or "nothing there",
                        expected=before,
                        way_out=f"put the old one back, or give the new one a new --out than {self.out}",
                    )
            if saved == self.config:
                return
        text = {"fingerprint": self.fingerprint, "versions": _versions(), "inputs": inputs}
        text |= {"rules": self.rules} if self.rules else {}
        head = "# The settings of this run; `nemo-sdg run` takes this file as a recipe.\n"
        text["config"] = dataclasses.asdict(self.config)
        commit_text(file, head + yaml.safe_dump(text, sort_keys=False))

    def _clear(self) -> None:
        """Takes away what killed processes were writing. Nobody else writes yet: the other ranks wait for this one."""
        with refusing(self.out):
            (self.out / STOPPED).unlink(missing_ok=True)
            for path in leftovers(self.out):
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.exists():  # it may have gone with its folder
                    disk.fs.unlink(path)


def leftovers(out: Path) -> list[Path]:
    """Files and folders that a killed process was writing in a run's folder."""
    return [file for pattern in _LEFTOVERS for file in out.glob(pattern)]


def _inputs(config: RunConfig) -> dict[str, str]:
    values = flatten(config)
    elsewhere = {"models.instruct"} if config.generate.backend == "endpoint" else set()
    elsewhere |= {"models.reward"} if config.score.backend == "endpoint" else set()
    others = [name for name in config.generate.others if other_server(name, config.generate) is None]
    weighed = {f"generate.others.{name}": name for name in others}
    weighed |= {f"select.decontaminate.{path}": path for path in config.select.decontaminate}
    weighed |= {f"{key}.{path}": path for key in _WEIGHED for path in getattr(config.data, key.removeprefix("data."))}
    named = {key: values[key] for key in _INPUTS if values[key] is not None and key not in elsewhere} | weighed
    brief = config.data.synthesis.brief
    if brief is not None or has_judge(config):
        named["data.synthesis.templates"] = config.data.synthesis.templates
    if brief is not None:
        named |= {f"{brief}, {key}": path for key, path in brief_files(brief).items()}
    return named


def _digest(path: str) -> str | None:
    """What an input was: the content of a file, the texts of a folder of texts, names and sizes of another one, the
    commit of what is on the hub."""
    here = resources.resolve(path)
    if here.suffix == ".nemo" and here.is_file():  # a model in one file, of up to 682 GB: as a folder of that one file
        return hashlib.sha256(json.dumps([(here.name, here.stat().st_size)]).encode()).hexdigest()[:16]
    if here.is_dir() and (texts := texts_digest(here)):  # documents, templates
        return texts
    return resources.commit(path) or (digest(here) if here.exists() else rows_digest(path))


def _saved(out: Path, config: RunConfig, rules: dict[str, str]) -> RunConfig | None:
    """The config that the folder has, if it has one. Raises StoreError when it is another run's, or was altered."""
    if not (out / RUN).exists():
        return None
    check_text(out / RUN, f"put an unaltered copy back, or choose another --out than {out}")
    saved, their_rules = from_yaml(out / RUN), yaml.safe_load((out / RUN).read_text()).get("rules", {})
    theirs, ours = identity(saved), identity(config)
    for side, some in ((theirs, their_rules), (ours, rules)):
        side.update({f"the rule {name}": digest for name, digest in some.items()})
    different = [key for key in {**theirs, **ours} if theirs.get(key, "unset") != ours.get(key, "unset")]
    if different:
        listed = [f"{key} (run: {theirs.get(key, 'unset')}, asked: {ours.get(key, 'unset')})" for key in different]
        raise StoreError(
            "the folder holds a run of another config",
            where=out,
            found="; ".join(listed),
            way_out="choose another --out, delete the folder, or continue it as it is with "
            + ("the recipe that has its rules" if their_rules else f"`nemo-sdg run {out}/run.yaml --out {out}`"),
        )
    return saved


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
