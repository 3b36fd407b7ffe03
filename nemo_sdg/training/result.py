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
from nemo_sdg.store import commit_file, rows_digest
from nemo_sdg.training import reference
from nemo_sdg.training.online import Online

RESULT = "training.json"
_MARKER = "fit"
"""Says in a working folder which fit it is of."""
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
        "spec": models.spec,
        "start": folder.digest,
        "rows": rows.identity if isinstance(rows, Online) else rows_digest(rows),
        "seed": seed,
        **({"validation": rows_digest(validation)} if settings.validate_every and validation else {}),
    }


def committed(out: Path, signature: str) -> dict[str, Any] | None:
    """What a finished fit of this signature has told; None if there is nothing. Raises StoreError for another one's."""
    if not out.exists():
        return None
    found = read(out / RESULT) if (out / RESULT).is_file() else {}
    if found.get("signature") != signature:
        raise StoreError(
            "the folder holds the result of another fit", where=out, found=found.get("signature", f"no {RESULT}"),
            expected=signature, way_out="remove it or write to another folder",
        )  # fmt: skip
    clear(work_folder(out))  # of a fit that was killed just after its commit
    return found


def work_folder(out: Path) -> Path:
    """Where the restart points of a fit lie until it is done."""
    return out.with_name(f".{out.name}.fit")


def prepare(work: Path, signature: str) -> int:
    """Steps that an earlier attempt at this very fit has done; what belongs to another one is taken away."""
    from nemo_sdg.training.checkpoint import tidy, whole_steps

    marker = work / _MARKER
    if not marker.is_file() or marker.read_text() != signature:
        marker.unlink(missing_ok=True)  # first: what is half removed must not pass for a restart point of that fit
        for entry in work.iterdir() if work.is_dir() else ():
            if not entry.match(reference.PATTERN):  # which says itself what it is of
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        commit_file(marker, signature.encode())
    tidy(work)
    return max(whole_steps(work), default=0)


def clear(work: Path) -> None:
    """Remove the working folder of a fit whose result is committed; what cannot go now is nobody's restart point."""
    (work / _MARKER).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def losses_at(folder: Path, name: str) -> list[float]:
    """The losses up to a restart point; a fit that was killed in its commit keeps them in its result already."""
    return read(folder / name) if (folder / name).is_file() else read(folder / RESULT)["losses"]


def read(file: Path) -> Any:
    """What a fit has noted in a folder of its own, JSON. Raises StoreError where it was torn or altered."""
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise StoreError(
            "the file was torn or altered", where=file, found=str(error),
            way_out=f"delete the folder {file.parent.name} and run again",
        ) from error  # fmt: skip
