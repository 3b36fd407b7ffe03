"""Where a verb writes what it makes of a user's file: the result, and rows of other kinds in files beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nemo_sdg import resources
from nemo_sdg.errors import RowError


def beside(out: Path, kind: str) -> Path:
    """The file of the rows of a kind (faulty, dropped) beside a result."""
    return out.with_name(f"{out.name}.{kind}.jsonl")


def check_result(
    out: Path, inputs: Iterable[str | Path], kinds: Iterable[str], suffix: str = ".jsonl"
) -> None:  # fmt: skip
    """Raises RowError where the result cannot be written, or a file of it would take the place of an input.

    Args:
        inputs: files that are read, and folders, whose files of tomorrow are read tomorrow.
        kinds: of the files beside the result.
        suffix: what files of its kind are called.
    """
    expected = f"another {suffix} file in a folder that exists"
    found = None
    if out.is_dir() or not out.absolute().parent.is_dir():
        found = "a folder" if out.is_dir() else "no such folder"
    elif out.suffix == ".gz":
        found = "a compressed file"
    if found is not None:
        raise RowError("the result cannot be written", where=out, found=found, expected=expected)
    read = {resources.resolve(path).resolve() for path in inputs}
    folders = [path for path in read if path.is_dir()]
    for file in (out, *(beside(out, kind) for kind in kinds)):
        real = file.resolve()
        if real in read or any(real.is_relative_to(folder) for folder in folders):
            found = "the input itself" if real in read else "a place in the folder of the input"
            raise RowError("the result cannot be written", where=file, found=found, expected=expected)
    if suffix != ".jsonl" and out.suffix != suffix:
        found = f"a name that ends in {out.suffix or 'nothing'}"
        raise RowError("the result cannot be written", where=out, found=found, expected=expected)
