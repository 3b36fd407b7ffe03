"""Which fit a folder is the result of, and where a fit keeps what it has done until then."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.config import PAIRS, Models, Training
from nemo_sdg.engine.load import resolve_dtype
from nemo_sdg.errors import StoreError
from nemo_sdg.store import commit_file, digest, rows_digest
from nemo_sdg.training import reference
from nemo_sdg.training.online import Online

RESULT = "training.json"
_FREE = ("enabled", "restart_every", "keep_last", "validation", "iterations", *PAIRS)
"""Settings that leave the result as it is, or that the start and the rows stand for."""


def identity(
    task: str,
    settings: Training,
    models: Models,
    folder: ModelFolder,
    rows: Path | Online,
    seed: int,
    validation: Path | str | None,
) -> dict[str, Any]:
    """What the result depends on. The topology and the restart points change no more than last digits."""
    decisive = {key: value for key, value in asdict(settings).items() if key not in _FREE}
    return {
        "task": task,
        "settings": decisive,
        "dtype": str(resolve_dtype(models.dtype, folder)),
        "start": folder.digest,
        "rows": rows.identity if isinstance(rows, Online) else digest(rows),
        "seed": seed,
        **({"validation": rows_digest(validation)} if settings.validate_every and validation else {}),
    }


def committed(out: Path, signature: str) -> dict[str, Any] | None:
    """What a finished fit of this signature has told; None if there is nothing. Raises StoreError for another one's."""
    if not out.exists():
        return None
    result = out / RESULT
    found = json.loads(result.read_text()) if result.is_file() else {}
    if found.get("signature") != signature:
        raise StoreError(
            "the folder holds the result of another fit", where=out, found=found.get("signature", f"no {RESULT}"),
            expected=signature, way_out="remove it or write to another folder",
        )  # fmt: skip
    shutil.rmtree(work_folder(out), ignore_errors=True)  # of a fit that was killed just after its commit
    return found


def work_folder(out: Path) -> Path:
    """Where the restart points of a fit lie until it is done."""
    return out.with_name(f".{out.name}.fit")


def prepare(work: Path, signature: str) -> int:
    """Steps that an earlier attempt at this very fit has done; what belongs to another one is taken away."""
    from nemo_sdg.training.checkpoint import tidy, whole_steps

    marker = work / "fit"
    if not marker.is_file() or marker.read_text() != signature:
        for entry in work.iterdir() if work.is_dir() else ():
            if not entry.match(reference.PATTERN):  # which says itself what it is of
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        commit_file(marker, signature.encode())
    tidy(work)
    return max(whole_steps(work), default=0)


def losses_at(folder: Path, name: str) -> list[float]:
    """The losses up to a restart point; a fit that was killed in its commit keeps them in its result already."""
    if (folder / name).is_file():
        return json.loads((folder / name).read_text())
    return json.loads((folder / RESULT).read_text())["losses"]
