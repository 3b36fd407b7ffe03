"""The result of a fit on disk: the model folder with what `training.json` tells of how it was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from nemo_sdg.errors import StoreError

RESULT = "training.json"


def committed(out: Path, signature: str) -> dict[str, Any] | None:
    """What the folder says of itself if a fit of this signature has made it; None if there is no such folder.

    Raises StoreError for the result of another fit.
    """
    if not out.exists():
        return None
    result = out / RESULT
    found = json.loads(result.read_text()) if result.is_file() else {}
    if found.get("signature") != signature:
        raise StoreError(
            "the folder holds the result of another fit", where=out, found=found.get("signature", f"no {RESULT}"),
            expected=signature, way_out="remove it or write to another folder",
        )  # fmt: skip
    shutil.rmtree(work_of(out), ignore_errors=True)  # of a fit that was killed just after its commit
    return found


def work_of(out: Path) -> Path:
    """Where the restart points of a fit lie until it is done."""
    return out.with_name(f".{out.name}.fit")


def losses_of(file: Path) -> list[float]:
    """The losses up to a restart point; a fit that was killed in its commit keeps them in its result already."""
    if file.is_file():
        return json.loads(file.read_text())
    return json.loads((file.parent / RESULT).read_text())["losses"]
