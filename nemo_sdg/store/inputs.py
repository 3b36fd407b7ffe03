"""What names the rows that a setting points at, wherever they lie."""

from __future__ import annotations

from pathlib import Path

from nemo_sdg.config.values import fingerprint
from nemo_sdg.records.sources import row_files
from nemo_sdg.store.files import digest

_TEXTS = (".txt", ".md", ".yaml")


def rows_digest(path: str | Path) -> str | None:
    """16 hex digits for the content of a file of rows, or of all files of a folder or a glob; None when absent.

    Raises UserError when a folder or a glob has none.
    """
    files = row_files(path)
    return digest(files[0]) if len(files) == 1 else fingerprint([digest(file) for file in files])


def texts_digest(folder: Path) -> str | None:
    """16 hex digits for the content of all texts in a folder; None if anything else lies in it, or nothing."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if not files or any(file.suffix not in _TEXTS for file in files):
        return None
    return fingerprint([[file.relative_to(folder).as_posix(), digest(file)] for file in files])
