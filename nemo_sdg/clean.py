"""`clean`: says what of a run may go, and how much room that makes; deletes it with --yes."""

from __future__ import annotations

from pathlib import Path

from nemo_sdg.checkpoints.keeping import Removable, otherwise, removable
from nemo_sdg.config import RunConfig, from_yaml, load
from nemo_sdg.config.loading import COMMAND_LINE
from nemo_sdg.console import Console, size_text
from nemo_sdg.errors import ConfigError, StoreError
from nemo_sdg.store.lock import release, take


def clean(run: Path, overrides: list[str], console: Console, *, yes: bool) -> int:
    """Lists what `keep.*` lets go, or deletes it; returns the exit status.

    Raises:
        StoreError: the folder is no run, or a process works on it.
        ConfigError: a setting that is not one of `keep`.
    """
    if not (run / "run.yaml").is_file():
        raise StoreError("the folder is no run", where=run, found="no run.yaml", way_out="give the --out of a run")
    for word in overrides:
        if not word.startswith("keep."):
            raise ConfigError(
                "only what stays can be changed here", where=COMMAND_LINE, found=word,
                expected="keep.models=last or keep.intermediate=false",
            )  # fmt: skip
    lock = take(run / "run.lock", "the run", "wait for it, or stop it")
    try:
        config = load(str(run / "run.yaml"), overrides) if overrides else from_yaml(run / "run.yaml")
        found = list(removable(run, config))
        if not found:
            console.say(f"{run}: nothing to delete{_more(run, config)}")
            return 0
        rows = [
            (one.path.relative_to(run), _what(one), f"{one.files:,}", size_text(one.num_bytes), one.why) for one in found
        ]
        console.table(f"{run}: to delete", ("where", "what", "files", "size", "because"), rows)
        total = size_text(sum(one.num_bytes for one in found))
        if not yes:
            console.say(f"{total} in all; nothing is deleted yet: the same command with --yes does it")
            return 0
        for one in found:
            one.remove()
        console.say(f"{total} deleted; rows, datasets and the last models are as they were")
    finally:
        release(lock)
    return 0


def _what(one: Removable) -> str:
    return "the weights" if one.model is not None else "all of it"


def _more(run: Path, config: RunConfig) -> str:
    """What other settings would let go."""
    size = sum(one.num_bytes for one in removable(run, otherwise(config)))
    return f"; keep.models=last keep.intermediate=false would let go {size_text(size)}" if size else ""
