"""Where the files lie that a domain brief names."""

from __future__ import annotations

from pathlib import Path

from nemo_sdg.config.loading import read_mapping

BRIEF_FILES = ("seeds", "documents")
"""Keys of a brief whose values are paths."""


def brief_files(brief: str) -> dict[str, str]:
    """Key -> path of the files that a brief names. Raises ConfigError when it is no mapping."""
    block = read_mapping(brief, "brief")
    return {key: beside(brief, block[key]) for key in BRIEF_FILES if isinstance(block.get(key), str)}


def beside(brief: str, path: str) -> str:
    """A path of a brief, which counts from the brief's own folder; `package:` and `hf://` stay."""
    if path.startswith(("package:", "hf://", "/", "~")):
        return path
    folder, slash, _ = brief.rpartition("/")
    return f"{folder}{slash}{path}" if brief.startswith("package:") else str(Path(brief).parent / path)
