"""How a file that a run writes proves itself, so that no altered byte passes: a digest inside, or sums beside.

A part's name holds its digest (`stage`). JSON holds one as its last key, text as its last line, and a folder has
SHA256SUMS. What is read must be to the byte what is written for the same value.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nemo_sdg.errors import StoreError
from nemo_sdg.store.files import commit_file, sha256_of, write_file

SUMS = "SHA256SUMS"
CLEANED = "cleaned.json"
"""In the folder of a model whose weights were deleted: which files, and what the model was."""
KEY = "sha256"


def commit_json(path: Path, value: Mapping[str, Any]) -> None:
    """Puts a mapping at `path` with its digest. NaN is a ValueError."""
    commit_file(path, _json(path, value))


def read_json(path: Path) -> dict[str, Any] | None:
    """What `commit_json` has put there; None if nothing did. Raises StoreError when a byte is another."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        value = json.loads(data)
        value.pop(KEY)
        whole = _json(path, value) == data
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise StoreError("the file was torn or altered", where=path, way_out="delete it and run again")
    return value


def commit_text(path: Path, text: str, comment: str = "# {}") -> None:
    """Puts text at `path`, with its digest in a comment as its last line."""
    commit_file(path, _text(path, text, comment))


def check_text(path: Path, way_out: str, comment: str = "# {}") -> None:
    """Raises StoreError when a byte of a file is not what `commit_text` has put there."""
    data = path.read_bytes()
    body = data[: data.rstrip(b"\n").rfind(b"\n") + 1]
    if _text(path, body.decode("utf-8", "surrogateescape"), comment) != data:
        raise StoreError("the file was torn or altered", where=path, way_out=way_out)


def write_sums(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Puts SHA256SUMS, which `sha256sum -c` reads, into a folder that is about to be committed.

    Args:
        known: sums that need not be made again, by name.
    """
    write_file(folder / SUMS, _sums_text(sums(folder, known)))


def sums(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """SHA-256 in hex of each file below a folder, but for the list itself, by name."""
    names, known = files_of(folder), known or {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        return dict(zip(names, pool.map(lambda name: known.get(name) or sha256_of(folder / name), names)))


def files_of(folder: Path) -> list[str]:
    """The names of all files below a folder, but for the list of their sums."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return [name for name in names if name != SUMS]


def check_sums(folder: Path) -> list[str]:
    """What is not as it was when the folder was committed, one sentence each."""
    listed, found = folder / SUMS, sums(folder)
    try:
        cleaned = read_json(folder / CLEANED)
    except StoreError as error:
        return [str(error)]
    if cleaned is not None:
        del found[CLEANED]
    if not listed.is_file():
        return [_said("the list of sums is not there", listed)]
    data = listed.read_bytes()
    if data == _sums_text(found):
        return []
    lines = (line.split("  ", 1) for line in data.decode("utf-8", "replace").splitlines())
    expected = {line[1]: line[0] for line in lines if len(line) == 2}
    problems = []
    for name in sorted({*expected, *found}):
        if name not in found and cleaned is not None and name in cleaned["removed"]:
            continue
        if name not in found:
            problems.append(_said("the file is listed and not there", folder / name))
        elif name not in expected:
            problems.append(_said("the file is not listed", folder / name, expected=f"its sum in {SUMS}"))
        elif found[name] != expected[name]:
            problems.append(
                _said("the file was torn or altered", folder / name, found=found[name], expected=expected[name])
            )
    if not problems and (cleaned is None or data != _sums_text(expected)):
        problems.append(_said("the file was torn or altered", listed))
    return problems


def _json(path: Path, value: Mapping[str, Any]) -> bytes:
    plain = json.dumps(value, indent=1, allow_nan=False)
    # Of which file of which folder it is: two that were exchanged would be whole.
    place = path.absolute()
    sealed = {**value, KEY: _seal(f"{place.parent.name}/{place.name}", plain.encode())}
    return (json.dumps(sealed, indent=1, allow_nan=False) + "\n").encode()


def _text(path: Path, text: str, comment: str) -> bytes:
    body = text.encode("utf-8", "surrogateescape")
    return body + (comment.format(f"sha256 {_seal(path.name, body)}") + "\n").encode()


def _seal(name: str, data: bytes) -> str:
    return hashlib.sha256(name.encode() + b"\0" + data).hexdigest()


def _sums_text(found: Mapping[str, str]) -> bytes:
    return "".join(f"{found[name]}  {name}\n" for name in sorted(found)).encode()


def _said(what: str, where: Path, found: object = None, expected: object = None) -> str:
    way_out = "delete the folder and run again to make it once more"
    return str(StoreError(what, where=where, found=found, expected=expected, way_out=way_out))
