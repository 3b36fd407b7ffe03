"""A run's folder: one config, one writer, everything inside by relative path."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import time
from pathlib import Path
from typing import Any, Mapping

import yaml

from nemo_sdg import resources
from nemo_sdg.config import RunConfig, fingerprint, flatten, from_yaml, identity, to_yaml
from nemo_sdg.errors import StoreError
from nemo_sdg.store.files import commit_file, digest, make_folder
from nemo_sdg.store.lock import release, take

_INPUTS = ("models.base", "models.instruct", "models.reward", "data.prompts", "data.helpsteer2")
_INPUTS += ("evaluate.exact_match", "evaluate.helpsteer2")
_VERSIONED = ("nemo-sdg", "torch", "megatron-core", "nemo-toolkit")
_MAY_STAND = {"run.lock", "logs"}
"""What a folder may hold before it is a run: an earlier start may have been killed between these and run.yaml."""


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
        if out.is_dir() and not (out / "run.yaml").exists():
            names = sorted(entry.name for entry in out.iterdir())
            strange = [name for name in names if name not in _MAY_STAND and not name.startswith(".run.yaml.tmp-")]
            if strange:
                raise StoreError(
                    "the folder is full and is no run",
                    where=out,
                    found=", ".join(strange[:3]) + (" ..." if len(strange) > 3 else ""),
                    expected="run.yaml",
                    way_out="choose an empty or a new folder for --out",
                )
        try:
            make_folder(out)
        except OSError as error:
            found = error.strerror
            raise StoreError(
                "cannot make the folder", where=out, found=found, way_out="choose another --out"
            ) from error
        lock = take(out / "run.lock", "the run", "wait for it, stop it, or choose another --out")
        run = cls(out, config, True, lock, rules)
        try:
            _check_same(out, config, run.rules)
            run._describe()
        except BaseException:
            run.close()
            raise
        return run

    def round(self, number: int) -> Path:
        """The folder of a round, counted from 0."""
        return self.out / f"round-{number}"

    def events(self, name: str, **fields: Any) -> None:
        """Appends one line to logs/events.jsonl, for machines; nothing reads it back."""
        if not self.writer:
            return
        make_folder(self.out / "logs")
        line = json.dumps({"time": round(time.time(), 3), "event": name, **fields}, default=str) + "\n"
        file = os.open(self.out / "logs" / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def close(self) -> None:
        """Lets the next process write here."""
        if self._lock is not None:
            release(self._lock)
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _describe(self) -> None:
        """run.yaml: the config, what it is called, what made it and what its inputs were."""
        inputs = {key: _digest(path) for key, path in _inputs(self.config).items()}
        file = self.out / "run.yaml"
        if file.exists():
            saved = yaml.safe_load(file.read_text())
            for key, now in inputs.items():
                before = saved.get("inputs", {}).get(key)
                if before is not None and before != now:
                    raise StoreError(
                        f"{key} is not what this run began with",
                        where=_inputs(self.config)[key],
                        found=now or "nothing there",
                        expected=before,
                        way_out=f"put the old one back, or give the new one a new --out than {self.out}",
                    )
            if from_yaml(file) == self.config:
                return
        text = {"fingerprint": self.fingerprint, "versions": _versions(), "inputs": inputs}
        text |= {"rules": self.rules} if self.rules else {}
        head = "# The settings of this run; `nemo-sdg run` takes this file as a recipe.\n"
        config = {"config": yaml.safe_load(to_yaml(self.config))}
        commit_file(file, (head + yaml.safe_dump({**text, **config}, sort_keys=False)).encode())


def _inputs(config: RunConfig) -> dict[str, str]:
    values = flatten(config)
    elsewhere = {"models.instruct"} if config.generate.backend == "endpoint" else set()
    elsewhere |= {"models.reward"} if config.score.backend == "endpoint" else set()
    return {key: values[key] for key in _INPUTS if values[key] is not None and key not in elsewhere}


def _digest(path: str) -> str | None:
    """What an input was: the content of a file, the names and sizes of a folder, the commit of what is on the hub."""
    here = resources.resolve(path)
    if here.suffix == ".nemo" and here.is_file():  # a model in one file, of up to 682 GB: as a folder of that one file
        return hashlib.sha256(json.dumps([(here.name, here.stat().st_size)]).encode()).hexdigest()[:16]
    return resources.commit(path) or digest(here)


def _check_same(out: Path, config: RunConfig, rules: dict[str, str]) -> None:
    if not (out / "run.yaml").exists():
        return
    theirs, ours = identity(from_yaml(out / "run.yaml")), identity(config)
    saved = yaml.safe_load((out / "run.yaml").read_text()).get("rules", {})
    for side, some in ((theirs, saved), (ours, rules)):
        side.update({f"the rule {name}": digest for name, digest in some.items()})
    different = [key for key in {**theirs, **ours} if theirs.get(key, "unset") != ours.get(key, "unset")]
    if different:
        listed = [f"{key} (run: {theirs.get(key, 'unset')}, asked: {ours.get(key, 'unset')})" for key in different]
        raise StoreError(
            "the folder holds a run of another config",
            where=out,
            found="; ".join(listed),
            way_out="choose another --out, delete the folder, or continue it as it is with "
            + ("the recipe that has its rules" if saved else f"`nemo-sdg run {out}/run.yaml --out {out}`"),
        )


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
